// Gated units, SwiGLU and GeGLU, and their backward pass: a block for each row.
//
// References: engine/shim/elementwise.cpp, engine/src/ops/reference.rs.

struct Gated {
    int kind;
    int activation; // 0 SiLU, 1 GELU, 2 GELU with tanh
    i64 rows, width;
    i64 gate_stride, up_stride;
    const void *gate, *up;
    void *y;
    const void *y_gradient;
    void *gate_gradient, *up_gradient;
};

// Every activation is x share(x): the share that passes, and its derivative.
struct Passing {
    float share, slope;
};

struct Silu {
    static __device__ inline Passing at(float x) {
        const float share = 1.0f / (1.0f + expf(-x));
        return {share, share * (1.0f - share)};
    }
};

// The share is the normal distribution's.
struct Gelu {
    static __device__ inline Passing at(float x) {
        return {0.5f * erfcf(-0.707106781f * x), 0.398942280f * expf(-0.5f * x * x)};
    }
};

// (1 + tanh(u)) / 2 is sigmoid(2 u).
struct GeluTanh {
    static __device__ inline Passing at(float x) {
        const float twice = 1.59576912f, cubic = 0.044715f;
        const float share = 1.0f / (1.0f + expf(-twice * (x + cubic * x * x * x)));
        return {share, share * (1.0f - share) * twice * (1.0f + 3.0f * cubic * x * x)};
    }
};

template <typename T, int N, typename Activation> __device__ void forward(const Gated &job) {
    const i64 row = blockIdx.x, count = job.width / N;
    const Pack<T, N> *gate = packs<T, N>(job.gate, row * job.gate_stride);
    const Pack<T, N> *up = packs<T, N>(job.up, row * job.up_stride);
    Pack<T, N> *y = packs<T, N>(job.y, row * job.width);
    for (i64 i = threadIdx.x; i < count; i += blockDim.x) {
        const Pack<T, N> a = gate[i], b = up[i];
        Pack<T, N> out;
        for (int k = 0; k < N; k++) {
            const float x = load(a.x[k]);
            store(x * Activation::at(x).share * load(b.x[k]), out.x[k]);
        }
        y[i] = out;
    }
}

template <typename T, int N, typename Activation> __device__ void backward(const Gated &job) {
    const i64 row = blockIdx.x, count = job.width / N;
    const Pack<T, N> *gate = packs<T, N>(job.gate, row * job.gate_stride);
    const Pack<T, N> *up = packs<T, N>(job.up, row * job.up_stride);
    const Pack<T, N> *given = packs<T, N>(job.y_gradient, row * job.width);
    Pack<T, N> *gate_gradient = packs<T, N>(job.gate_gradient, row * job.width);
    Pack<T, N> *up_gradient = packs<T, N>(job.up_gradient, row * job.width);
    for (i64 i = threadIdx.x; i < count; i += blockDim.x) {
        const Pack<T, N> a = gate[i], b = up[i], g = given[i];
        Pack<T, N> of_gate, of_up;
        for (int k = 0; k < N; k++) {
            const float x = load(a.x[k]), from_above = load(g.x[k]);
            const Passing passing = Activation::at(x);
            store(from_above * x * passing.share, of_up.x[k]);
            store(from_above * load(b.x[k]) * (passing.share + x * passing.slope), of_gate.x[k]);
        }
        gate_gradient[i] = of_gate;
        up_gradient[i] = of_up;
    }
}

template <typename T> __device__ bool in_packs(const Gated &job) {
    return multiples(FULL<T>, job.width, job.gate_stride, job.up_stride) &&
           aligned(16, job.gate, job.up, job.y, job.y_gradient, job.gate_gradient, job.up_gradient);
}

template <typename T, int N> __device__ void forward_of(const Gated &job) {
    switch (job.activation) {
    case 0: return forward<T, N, Silu>(job);
    case 1: return forward<T, N, Gelu>(job);
    default: return forward<T, N, GeluTanh>(job);
    }
}

template <typename T, int N> __device__ void backward_of(const Gated &job) {
    switch (job.activation) {
    case 0: return backward<T, N, Silu>(job);
    case 1: return backward<T, N, Gelu>(job);
    default: return backward<T, N, GeluTanh>(job);
    }
}

template <typename T> __device__ void gated(const Gated &job) {
    in_packs<T>(job) ? forward_of<T, FULL<T>>(job) : forward_of<T, 1>(job);
}

template <typename T> __device__ void gated_backward(const Gated &job) {
    in_packs<T>(job) ? backward_of<T, FULL<T>>(job) : backward_of<T, 1>(job);
}

extern "C" {
__global__ void gated_f32(const Gated job) { gated<float>(job); }
__global__ void gated_bf16(const Gated job) { gated<bfloat16>(job); }
__global__ void gated_backward_f32(const Gated job) { gated_backward<float>(job); }
__global__ void gated_backward_bf16(const Gated job) { gated_backward<bfloat16>(job); }
}
