// Root-mean-square norm with the sum before it, and its backward pass: a block for each row.
//
// References: engine/shim/elementwise.cpp, engine/src/ops/reference.rs.

struct RmsNorm {
    int kind;        // of all but what is said to be f32: 0 is f32, 1 is bfloat16
    int round_first; // whether x̂ is rounded before the weight is applied
    i64 rows, width;
    i64 x_stride, branch_stride;
    float eps;
    const void *x;
    const void *branch; // what to add to x first, or null
    void *sum;          // the sum, where there is a branch
    const float *weight;
    float *scales; // for each row 1 / sqrt(mean(x²) + eps)
    void *y;
    const void *y_gradient;
    const void *x_gradient; // from elsewhere, to be added, or null
    void *result;           // gradient of x
    float *weight_gradient;
};

template <typename T, int N> __device__ void norm(const RmsNorm &job) {
    const i64 row = blockIdx.x, count = job.width / N;
    const Pack<T, N> *x = packs<T, N>(job.x, row * job.x_stride);
    const Pack<T, N> *branch = packs<T, N>(job.branch, row * job.branch_stride);
    Pack<T, N> *sum = packs<T, N>(job.sum, row * job.width);
    float squares = 0;
    for (i64 i = threadIdx.x; i < count; i += blockDim.x) {
        Pack<T, N> here = x[i];
        if (job.branch) {
            const Pack<T, N> added = branch[i];
            for (int k = 0; k < N; k++) {
                store(load(here.x[k]) + load(added.x[k]), here.x[k]);
            }
            sum[i] = here;
        }
        for (int k = 0; k < N; k++) {
            squares += load(here.x[k]) * load(here.x[k]);
        }
    }
    const float scale = 1.0f / sqrtf(over_block<Sum>(squares) / float(job.width) + job.eps);
    if (threadIdx.x == 0) {
        job.scales[row] = scale;
    }
    // Each thread reads what it wrote itself.
    const Pack<T, N> *from = job.branch ? sum : x;
    const Pack<float, N> *weight = packs<float, N>(static_cast<const void *>(job.weight), 0);
    Pack<T, N> *y = packs<T, N>(job.y, row * job.width);
    for (i64 i = threadIdx.x; i < count; i += blockDim.x) {
        const Pack<T, N> here = from[i];
        const Pack<float, N> factors = weight[i];
        Pack<T, N> out;
        for (int k = 0; k < N; k++) {
            const float normed = load(here.x[k]) * scale;
            store((job.round_first ? rounded<T>(normed) : normed) * factors.x[k], out.x[k]);
        }
        y[i] = out;
    }
}

// With x̂ = x s and h = g w: the gradient of x is s (h - x̂ mean(h x̂)).
template <typename T, int N> __device__ void norm_backward(const RmsNorm &job) {
    const i64 row = blockIdx.x, count = job.width / N;
    const Pack<T, N> *x = packs<T, N>(job.x, row * job.x_stride);
    const Pack<T, N> *given = packs<T, N>(job.y_gradient, row * job.width);
    const Pack<T, N> *more = packs<T, N>(job.x_gradient, row * job.width);
    const Pack<float, N> *weight = packs<float, N>(static_cast<const void *>(job.weight), 0);
    float product = 0;
    for (i64 i = threadIdx.x; i < count; i += blockDim.x) {
        const Pack<T, N> here = x[i], g = given[i];
        const Pack<float, N> factors = weight[i];
        for (int k = 0; k < N; k++) {
            product += load(g.x[k]) * factors.x[k] * load(here.x[k]);
        }
    }
    const float scale = job.scales[row];
    const float along = over_block<Sum>(product) * scale * scale / float(job.width);
    Pack<T, N> *result = packs<T, N>(job.result, row * job.width);
    for (i64 i = threadIdx.x; i < count; i += blockDim.x) {
        const Pack<T, N> here = x[i], g = given[i];
        const Pack<float, N> factors = weight[i];
        Pack<T, N> out;
        if (job.x_gradient) {
            out = more[i];
        }
        for (int k = 0; k < N; k++) {
            const float own = scale * (load(g.x[k]) * factors.x[k] - load(here.x[k]) * along);
            store(job.x_gradient ? own + load(out.x[k]) : own, out.x[k]);
        }
        result[i] = out;
    }
}

// The gradient of the weight. A block has a warp's width of columns; its warps take the rows
// in turn, and their sums are added in their order.
template <typename T> __device__ void norm_weight(const RmsNorm &job) {
    __shared__ double sums[WARP][WARP];
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const i64 column = i64(blockIdx.x) * WARP + lane;
    double sum = 0;
    if (column < job.width) {
        for (i64 row = warp; row < job.rows; row += blockDim.x / WARP) {
            const float normed = load(static_cast<const T *>(job.x)[row * job.x_stride + column]) * job.scales[row];
            const float g = load(static_cast<const T *>(job.y_gradient)[row * job.width + column]);
            sum += double(g * (job.round_first ? rounded<T>(normed) : normed));
        }
    }
    sums[warp][lane] = sum;
    __syncthreads();
    if (warp == 0 && column < job.width) {
        for (u32 other = 1; other < blockDim.x / WARP; other++) {
            sum += sums[other][lane];
        }
        job.weight_gradient[column] = float(sum);
    }
}

template <typename T> __device__ bool in_packs(const RmsNorm &job) {
    return multiples(FULL<T>, job.width, job.x_stride, job.branch_stride) &&
           aligned(16, job.x, job.branch, job.sum, job.y, job.y_gradient, job.x_gradient, job.result) &&
           aligned(32, job.weight);
}

template <typename T> __device__ void norm_of(const RmsNorm &job) {
    in_packs<T>(job) ? norm<T, FULL<T>>(job) : norm<T, 1>(job);
}

template <typename T> __device__ void norm_backward_of(const RmsNorm &job) {
    in_packs<T>(job) ? norm_backward<T, FULL<T>>(job) : norm_backward<T, 1>(job);
}

extern "C" {
__global__ void rms_norm_f32(const RmsNorm job) { norm_of<float>(job); }
__global__ void rms_norm_bf16(const RmsNorm job) { norm_of<bfloat16>(job); }
__global__ void rms_norm_backward_f32(const RmsNorm job) { norm_backward_of<float>(job); }
__global__ void rms_norm_backward_bf16(const RmsNorm job) { norm_backward_of<bfloat16>(job); }
__global__ void rms_norm_weight_f32(const RmsNorm job) { norm_weight<float>(job); }
__global__ void rms_norm_weight_bf16(const RmsNorm job) { norm_weight<bfloat16>(job); }
}
