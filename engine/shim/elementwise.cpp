// The element-wise operations of a decoder on CPU, and AdamW: each goes through memory once.
//
// Owns arithmetic alone: Rust's side (engine/src/ops/loops.rs) makes the tensors and checks
// their shapes. Numbers are stored as f32 or bfloat16 and computed in f32, each result rounded
// once but where a family of models says otherwise. Rows may lie apart (strides count
// elements), their elements may not; what is written is dense. How many threads share the work
// changes no number.

#include "processors.h"

#include <ATen/Parallel.h>
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace {

// ---- Storage

struct bfloat16 {
    uint16_t bits;
};

INLINE float load(float x) { return x; }
INLINE float load(bfloat16 x) { return __builtin_bit_cast(float, uint32_t(x.bits) << 16); }

INLINE void store(float x, float &place) { place = x; }
// To the nearest, halves to even; any NaN becomes the usual one.
INLINE void store(float x, bfloat16 &place) {
    const uint32_t bits = __builtin_bit_cast(uint32_t, x);
    const uint32_t nearest = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    place.bits = uint16_t(x != x ? 0x7fc0 : nearest);
}

template <typename T> INLINE float rounded(float x) {
    T stored;
    store(x, stored);
    return load(stored);
}

// Elements that make a thread worth waking; as many as in libtorch's own loops.
constexpr int64_t GRAIN = 32768;

// Calls `some` for ranges of rows, in several threads where there is enough to do.
template <typename Job>
void share(const Job &job, int64_t rows, int64_t width, void (*some)(const Job &, int64_t, int64_t)) {
    const int64_t grain = std::max<int64_t>(1, GRAIN / std::max<int64_t>(1, width));
    at::parallel_for(0, rows, grain, [&](int64_t from, int64_t to) { some(job, from, to); });
}

// ---- Root-mean-square norm

struct RmsNorm {
    int32_t kind;        // of all but what is said to be f32: 0 is f32, 1 is bfloat16
    int32_t round_first; // whether x̂ is rounded before the weight is applied
    int64_t rows, width;
    int64_t x_stride, branch_stride;
    float eps;
    const void *x;
    const void *branch;    // what to add to x first, or null
    void *sum;             // the sum, where there is a branch
    const float *weight;   // f32
    float *scales;         // f32, for each row 1 / sqrt(mean(x²) + eps)
    void *y;               // result of the forward pass
    const void *y_gradient;
    const void *x_gradient; // from elsewhere, to be added, or null
    void *result;           // gradient of x
    float *weight_gradient; // f32
};

template <typename T> INLINE void norm(const RmsNorm &job, int64_t from, int64_t to) {
    const float *__restrict weight = job.weight;
    for (int64_t row = from; row < to; row++) {
        const T *__restrict x = static_cast<const T *>(job.x) + row * job.x_stride;
        if (job.branch) {
            const T *__restrict branch = static_cast<const T *>(job.branch) + row * job.branch_stride;
            T *__restrict sum = static_cast<T *>(job.sum) + row * job.width;
#pragma omp simd
            for (int64_t i = 0; i < job.width; i++) {
                store(load(x[i]) + load(branch[i]), sum[i]);
            }
            x = sum;
        }
        float squares = 0;
#pragma omp simd reduction(+ : squares)
        for (int64_t i = 0; i < job.width; i++) {
            squares += load(x[i]) * load(x[i]);
        }
        const float scale = 1.0f / std::sqrt(squares / float(job.width) + job.eps);
        job.scales[row] = scale;
        T *__restrict y = static_cast<T *>(job.y) + row * job.width;
        const bool round_first = job.round_first;
#pragma omp simd
        for (int64_t i = 0; i < job.width; i++) {
            const float normed = load(x[i]) * scale;
            store((round_first ? rounded<T>(normed) : normed) * weight[i], y[i]);
        }
    }
}

// With x̂ = x s and h = g w: the gradient of x is s (h - x̂ mean(h x̂)).
template <typename T> INLINE void norm_backward(const RmsNorm &job, int64_t from, int64_t to) {
    const float *__restrict weight = job.weight;
    for (int64_t row = from; row < to; row++) {
        const T *__restrict x = static_cast<const T *>(job.x) + row * job.x_stride;
        const T *__restrict g = static_cast<const T *>(job.y_gradient) + row * job.width;
        T *__restrict result = static_cast<T *>(job.result) + row * job.width;
        float product = 0;
#pragma omp simd reduction(+ : product)
        for (int64_t i = 0; i < job.width; i++) {
            product += load(g[i]) * weight[i] * load(x[i]);
        }
        const float scale = job.scales[row];
        const float along = product * scale * scale / float(job.width);
        if (job.x_gradient) {
            const T *__restrict more = static_cast<const T *>(job.x_gradient) + row * job.width;
#pragma omp simd
            for (int64_t i = 0; i < job.width; i++) {
                const float own = scale * (load(g[i]) * weight[i] - load(x[i]) * along);
                store(own + load(more[i]), result[i]);
            }
        } else {
#pragma omp simd
            for (int64_t i = 0; i < job.width; i++) {
                store(scale * (load(g[i]) * weight[i] - load(x[i]) * along), result[i]);
            }
        }
    }
}

// Columns `from..to`: each adds up its rows in their order, whatever the number of threads.
template <typename T> INLINE void norm_weight(const RmsNorm &job, int64_t from, int64_t to) {
    std::vector<double> sums(size_t(to - from), 0.0);
    double *__restrict sum = sums.data();
    const bool round_first = job.round_first;
    for (int64_t row = 0; row < job.rows; row++) {
        const T *__restrict x = static_cast<const T *>(job.x) + row * job.x_stride + from;
        const T *__restrict g = static_cast<const T *>(job.y_gradient) + row * job.width + from;
        const float scale = job.scales[row];
#pragma omp simd
        for (int64_t i = 0; i < to - from; i++) {
            const float normed = load(x[i]) * scale;
            sum[i] += double(load(g[i]) * (round_first ? rounded<T>(normed) : normed));
        }
    }
    std::copy(sums.begin(), sums.end(), job.weight_gradient + from);
}

FOR_EVERY_CPU void norm_rows(const RmsNorm &job, int64_t from, int64_t to) {
    job.kind ? norm<bfloat16>(job, from, to) : norm<float>(job, from, to);
}

FOR_EVERY_CPU void norm_backward_rows(const RmsNorm &job, int64_t from, int64_t to) {
    job.kind ? norm_backward<bfloat16>(job, from, to) : norm_backward<float>(job, from, to);
}

FOR_EVERY_CPU void norm_weight_columns(const RmsNorm &job, int64_t from, int64_t to) {
    job.kind ? norm_weight<bfloat16>(job, from, to) : norm_weight<float>(job, from, to);
}

// ---- Rotary embedding

struct Rotation {
    int32_t kind;
    int32_t from_pairs; // whether x has its pairs side by side, or as halves
    int32_t to_pairs;   // the same for y
    float sign;         // 1, or -1 to turn back
    int64_t rows, heads, width;
    int64_t half; // pairs that turn; what is beyond them passes
    int64_t row_stride, head_stride;
    const void *x;
    const float *cos, *sin; // f32, [rows, half]
    void *y;
};

template <typename T, int FROM_STEP, int TO_STEP>
INLINE void turn(const Rotation &job, int64_t from, int64_t to) {
    const int64_t half = job.half;
    const int64_t from_second = FROM_STEP == 2 ? 1 : half, to_second = TO_STEP == 2 ? 1 : half;
    for (int64_t row = from; row < to; row++) {
        const float *__restrict cos = job.cos + row * half, *__restrict sin = job.sin + row * half;
        for (int64_t head = 0; head < job.heads; head++) {
            const T *__restrict x =
                static_cast<const T *>(job.x) + row * job.row_stride + head * job.head_stride;
            T *__restrict y = static_cast<T *>(job.y) + (row * job.heads + head) * job.width;
#pragma omp simd
            for (int64_t i = 0; i < half; i++) {
                const float a = load(x[FROM_STEP * i]), b = load(x[FROM_STEP * i + from_second]);
                const float s = job.sign * sin[i];
                store(a * cos[i] - b * s, y[TO_STEP * i]);
                store(b * cos[i] + a * s, y[TO_STEP * i + to_second]);
            }
            std::copy(x + 2 * half, x + job.width, y + 2 * half);
        }
    }
}

template <typename T> INLINE void rotate(const Rotation &job, int64_t from, int64_t to) {
    if (job.from_pairs) {
        job.to_pairs ? turn<T, 2, 2>(job, from, to) : turn<T, 2, 1>(job, from, to);
    } else {
        job.to_pairs ? turn<T, 1, 2>(job, from, to) : turn<T, 1, 1>(job, from, to);
    }
}

FOR_EVERY_CPU void rotate_rows(const Rotation &job, int64_t from, int64_t to) {
    job.kind ? rotate<bfloat16>(job, from, to) : rotate<float>(job, from, to);
}

// ---- Gated units

// e^x within two units of the last place, without a branch: 2^n times a polynomial over the
// rest, fitted for the least relative error. 0 and infinity lie where f32 has no normal number.
INLINE float exponential(float x) {
    const float inside = std::min(std::max(x, -87.4f), 88.8f);
    // Added, a whole number is left in the low bits.
    const float whole = 12582912.0f;
    const float shifted = inside * 1.44269504f + whole;
    const float n = shifted - whole;
    const float rest = (inside - n * 0.693145752f) - n * 1.42860677e-6f;
    float power = 1.38367375e-3f;
    power = power * rest + 8.37489869e-3f;
    power = power * rest + 4.16682325e-2f;
    power = power * rest + 0.166664198f;
    power = power * rest + 0.499999911f;
    power = power * rest + 1.0f;
    power = power * rest + 1.0f;
    const uint32_t exponent = (__builtin_bit_cast(uint32_t, shifted) << 23) + 0x3f800000;
    return power * __builtin_bit_cast(float, exponent);
}

INLINE float sigmoid(float x) { return 1.0f / (1.0f + exponential(-x)); }

// Every activation is x share(x): the share that passes, and its derivative.
struct Passing {
    float share, slope;
};

struct Silu {
    static INLINE Passing at(float x) {
        const float share = sigmoid(x);
        return {share, share * (1.0f - share)};
    }
};

// The share is the normal distribution's. Its tail is e^(-x²/2) times a function that is smooth
// in t = 1 / (1 + 0.3 |x|); the polynomial was fitted for the least relative error.
struct Gelu {
    static INLINE Passing at(float x) {
        const float density = exponential(-0.5f * x * x);
        const float t = 1.0f / (1.0f + 0.3f * std::fabs(x));
        float tail = 3.56748775e-2f;
        tail = tail * t - 0.157203495f;
        tail = tail * t + 0.206354185f;
        tail = tail * t - 5.36842721e-2f;
        tail = tail * t + 0.128561929f;
        tail = tail * t + 9.99134108e-2f;
        tail = tail * t + 0.120753966f;
        tail = tail * t + 0.119629301f;
        tail *= t * density;
        return {x > 0.0f ? 1.0f - tail : tail, 0.398942280f * density};
    }
};

// (1 + tanh(u)) / 2 is sigmoid(2 u).
struct GeluTanh {
    static INLINE Passing at(float x) {
        const float twice = 1.59576912f, cubic = 0.044715f;
        const float share = sigmoid(twice * (x + cubic * x * x * x));
        return {share, share * (1.0f - share) * twice * (1.0f + 3.0f * cubic * x * x)};
    }
};

struct Gated {
    int32_t kind;
    int32_t activation; // 0 SiLU, 1 GELU, 2 GELU with tanh
    int64_t rows, width;
    int64_t gate_stride, up_stride;
    const void *gate, *up;
    void *y;
    const void *y_gradient;
    void *gate_gradient, *up_gradient;
};

template <typename T, typename Activation>
INLINE void gate_forward(const Gated &job, int64_t from, int64_t to) {
    for (int64_t row = from; row < to; row++) {
        const T *__restrict gate = static_cast<const T *>(job.gate) + row * job.gate_stride;
        const T *__restrict up = static_cast<const T *>(job.up) + row * job.up_stride;
        T *__restrict y = static_cast<T *>(job.y) + row * job.width;
#pragma omp simd
        for (int64_t i = 0; i < job.width; i++) {
            const float x = load(gate[i]);
            store(x * Activation::at(x).share * load(up[i]), y[i]);
        }
    }
}

template <typename T, typename Activation>
INLINE void gate_backward(const Gated &job, int64_t from, int64_t to) {
    for (int64_t row = from; row < to; row++) {
        const T *__restrict gate = static_cast<const T *>(job.gate) + row * job.gate_stride;
        const T *__restrict up = static_cast<const T *>(job.up) + row * job.up_stride;
        const T *__restrict g = static_cast<const T *>(job.y_gradient) + row * job.width;
        T *__restrict gate_gradient = static_cast<T *>(job.gate_gradient) + row * job.width;
        T *__restrict up_gradient = static_cast<T *>(job.up_gradient) + row * job.width;
#pragma omp simd
        for (int64_t i = 0; i < job.width; i++) {
            const float x = load(gate[i]), given = load(g[i]);
            const Passing passing = Activation::at(x);
            store(given * x * passing.share, up_gradient[i]);
            store(given * load(up[i]) * (passing.share + x * passing.slope), gate_gradient[i]);
        }
    }
}

template <typename T> INLINE void gated(const Gated &job, int64_t from, int64_t to) {
    switch (job.activation) {
    case 0: return gate_forward<T, Silu>(job, from, to);
    case 1: return gate_forward<T, Gelu>(job, from, to);
    default: return gate_forward<T, GeluTanh>(job, from, to);
    }
}

template <typename T> INLINE void gated_backward(const Gated &job, int64_t from, int64_t to) {
    switch (job.activation) {
    case 0: return gate_backward<T, Silu>(job, from, to);
    case 1: return gate_backward<T, Gelu>(job, from, to);
    default: return gate_backward<T, GeluTanh>(job, from, to);
    }
}

FOR_EVERY_CPU void gated_rows(const Gated &job, int64_t from, int64_t to) {
    job.kind ? gated<bfloat16>(job, from, to) : gated<float>(job, from, to);
}

FOR_EVERY_CPU void gated_backward_rows(const Gated &job, int64_t from, int64_t to) {
    job.kind ? gated_backward<bfloat16>(job, from, to) : gated_backward<float>(job, from, to);
}

// ---- AdamW

struct AdamW {
    int64_t count;
    float *weights, *mean, *square;
    const float *gradient;
    float keep; // 1 - lr · weight decay
    float beta1, beta2;
    float new1, new2; // 1 - beta, rounded once
    float step;       // lr / (1 - beta1^n)
    float root;       // sqrt(1 - beta2^n)
    float eps;
};

FOR_EVERY_CPU void adamw_some(const AdamW &job, int64_t from, int64_t to) {
    float *__restrict weights = job.weights, *__restrict mean = job.mean, *__restrict square = job.square;
    const float *__restrict gradient = job.gradient;
#pragma omp simd
    for (int64_t i = from; i < to; i++) {
        const float g = gradient[i];
        mean[i] = job.beta1 * mean[i] + job.new1 * g;
        square[i] = job.beta2 * square[i] + job.new2 * g * g;
        const float spread = std::sqrt(square[i]) / job.root + job.eps;
        weights[i] = job.keep * weights[i] - job.step * mean[i] / spread;
    }
}

} // namespace

extern "C" {

void heirloom_rms_norm(const RmsNorm *job) { share(*job, job->rows, job->width, norm_rows); }

void heirloom_rms_norm_backward(const RmsNorm *job) {
    if (job->result) {
        share(*job, job->rows, job->width, norm_backward_rows);
    }
    if (job->weight_gradient) {
        share(*job, job->width, job->rows, norm_weight_columns);
    }
}

void heirloom_rotate(const Rotation *job) {
    share(*job, job->rows, job->heads * job->width, rotate_rows);
}

void heirloom_gated(const Gated *job) { share(*job, job->rows, job->width, gated_rows); }

void heirloom_gated_backward(const Gated *job) {
    share(*job, job->rows, job->width, gated_backward_rows);
}

void heirloom_adamw(const AdamW *job) { share(*job, job->count, 1, adamw_some); }
}
