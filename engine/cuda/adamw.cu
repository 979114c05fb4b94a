// One step of AdamW over all weights at once, in one pass over memory.
//
// References: engine/shim/elementwise.cpp, engine/src/ops/reference.rs.

struct AdamW {
    i64 count;
    float *weights, *mean, *square;
    const float *gradient;
    float keep; // 1 - lr · weight decay
    float beta1, beta2;
    float new1, new2; // 1 - beta, rounded once
    float step;       // lr / (1 - beta1^n)
    float root;       // sqrt(1 - beta2^n)
    float eps;
};

__device__ inline void update(const AdamW &job, float g, float &weight, float &mean, float &square) {
    mean = job.beta1 * mean + job.new1 * g;
    square = job.beta2 * square + job.new2 * g * g;
    const float spread = sqrtf(square) / job.root + job.eps;
    weight = job.keep * weight - job.step * mean / spread;
}

template <int N> __device__ void step(const AdamW &job) {
    using Floats = Pack<float, N>;
    const i64 first = i64(blockIdx.x) * blockDim.x + threadIdx.x;
    for (i64 i = first; i < job.count / N; i += i64(gridDim.x) * blockDim.x) {
        const Floats g = reinterpret_cast<const Floats *>(job.gradient)[i];
        Floats &weights = reinterpret_cast<Floats *>(job.weights)[i];
        Floats &means = reinterpret_cast<Floats *>(job.mean)[i];
        Floats &squares = reinterpret_cast<Floats *>(job.square)[i];
        Floats weight = weights, mean = means, square = squares;
        for (int k = 0; k < N; k++) {
            update(job, g.x[k], weight.x[k], mean.x[k], square.x[k]);
        }
        weights = weight;
        means = mean;
        squares = square;
    }
}

extern "C" __global__ void adamw_f32(const AdamW job) {
    const bool in_packs = multiples(4, job.count) && aligned(16, job.weights, job.mean, job.square, job.gradient);
    in_packs ? step<4>(job) : step<1>(job);
}
