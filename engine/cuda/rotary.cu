// Rotary embedding over packed rows, and back: a block for each row, all its heads.
//
// References: engine/shim/elementwise.cpp, engine/src/ops/reference.rs.

struct Rotation {
    int kind;
    int from_pairs; // whether x has its pairs side by side, or as halves
    int to_pairs;   // the same for y
    float sign;     // 1, or -1 to turn back
    i64 rows, heads, width;
    i64 half; // pairs that turn; what is beyond them passes
    i64 row_stride, head_stride;
    const void *x;
    const float *cos, *sin; // [rows, half]
    void *y;
};

// One pair: (a, b) turned.
__device__ inline float first(float a, float b, float cos, float sin) { return a * cos - b * sin; }
__device__ inline float second(float a, float b, float cos, float sin) { return b * cos + a * sin; }

// Halves to halves, N pairs at once.
template <typename T, int N> __device__ void turn_halves(const Rotation &job) {
    const i64 row = blockIdx.x;
    const int each = int(job.half) / N, all = each * int(job.heads);
    const Pack<float, N> *cos = packs<float, N>(static_cast<const void *>(job.cos), row * job.half);
    const Pack<float, N> *sin = packs<float, N>(static_cast<const void *>(job.sin), row * job.half);
    for (int i = threadIdx.x; i < all; i += blockDim.x) {
        const int head = i / each, at = i % each;
        const i64 from = row * job.row_stride + head * job.head_stride + at * N;
        const i64 to = (row * job.heads + head) * job.width + at * N;
        const Pack<T, N> a = *packs<T, N>(job.x, from), b = *packs<T, N>(job.x, from + job.half);
        const Pack<float, N> c = cos[at], s = sin[at];
        Pack<T, N> left, right;
        for (int k = 0; k < N; k++) {
            const float turned = job.sign * s.x[k];
            store(first(load(a.x[k]), load(b.x[k]), c.x[k], turned), left.x[k]);
            store(second(load(a.x[k]), load(b.x[k]), c.x[k], turned), right.x[k]);
        }
        *packs<T, N>(job.y, to) = left;
        *packs<T, N>(job.y, to + job.half) = right;
    }
}

// From either to either, pair by pair.
template <typename T> __device__ void turn_pairs(const Rotation &job) {
    const i64 row = blockIdx.x;
    const int half = int(job.half), all = half * int(job.heads);
    const int from_step = job.from_pairs ? 2 : 1, from_second = job.from_pairs ? 1 : half;
    const int to_step = job.to_pairs ? 2 : 1, to_second = job.to_pairs ? 1 : half;
    for (int i = threadIdx.x; i < all; i += blockDim.x) {
        const int head = i / half, at = i % half;
        const T *x = static_cast<const T *>(job.x) + row * job.row_stride + head * job.head_stride;
        T *y = static_cast<T *>(job.y) + (row * job.heads + head) * job.width;
        const float a = load(x[from_step * at]), b = load(x[from_step * at + from_second]);
        const float c = job.cos[row * half + at], s = job.sign * job.sin[row * half + at];
        store(first(a, b, c, s), y[to_step * at]);
        store(second(a, b, c, s), y[to_step * at + to_second]);
    }
}

// What is beyond the pairs passes.
template <typename T> __device__ void pass_rest(const Rotation &job) {
    const i64 row = blockIdx.x;
    const int rest = int(job.width - 2 * job.half), all = rest * int(job.heads);
    for (int i = threadIdx.x; i < all; i += blockDim.x) {
        const i64 head = i / rest, at = 2 * job.half + i % rest;
        const T *x = static_cast<const T *>(job.x) + row * job.row_stride + head * job.head_stride;
        static_cast<T *>(job.y)[(row * job.heads + head) * job.width + at] = x[at];
    }
}

template <typename T> __device__ void rotate(const Rotation &job) {
    const bool in_packs = !job.from_pairs && !job.to_pairs && aligned(16, job.x, job.y) &&
                          aligned(32, job.cos, job.sin) &&
                          multiples(FULL<T>, job.half, job.width, job.row_stride, job.head_stride);
    in_packs ? turn_halves<T, FULL<T>>(job) : turn_pairs<T>(job);
    if (2 * job.half < job.width) {
        pass_rest<T>(job);
    }
}

extern "C" {
__global__ void rotate_f32(const Rotation job) { rotate<float>(job); }
__global__ void rotate_bf16(const Rotation job) { rotate<bfloat16>(job); }
}
