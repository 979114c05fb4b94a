// Cross-entropy of rows of logits and its gradient, in the place of the logits.
//
// Owns arithmetic alone: Rust's side is engine/src/ops/cross_entropy.rs. Logits are stored as
// f32 or bfloat16 and computed with in f32.
//
// Reference: Liger kernels (arXiv 2410.10989), section 3.2.

#include "numbers.h"
#include "shim.h"

#include <ATen/Parallel.h>
#include <cmath>
#include <vector>

namespace {

struct Job {
    int32_t bfloat16s;
    int32_t differentiate; // whether gradients take the place of the logits
    int64_t rows, width;
    float scaling, softcap; // what logits are divided by; no cap where it is 0
    float smoothing;        // share of the target that all tokens have alike
    void *logits;           // [rows, width]
    const int64_t *targets;
    const float *weights; // of rows, or null
    float *losses;        // [rows], times their weights
};

template <bool caps, typename T> INLINE void entropy(const Job &job, int64_t from, int64_t to) {
    std::vector<float> space(job.width);
    float *scores = space.data();
    for (int64_t row = from; row < to; row++) {
        T *logits = static_cast<T *>(job.logits) + row * job.width;
        const int64_t target = job.targets[row];
        const float weight = job.weights ? job.weights[row] : 1.0f;
        float most = -INFINITY;
        #pragma omp simd reduction(max : most)
        for (int64_t i = 0; i < job.width; i++) {
            const float scaled = load(logits[i]) / job.scaling;
            scores[i] = caps ? job.softcap * hyperbolic_tangent(scaled / job.softcap) : scaled;
            most = scores[i] > most ? scores[i] : most;
        }
        float sum = 0;
        #pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < job.width; i++) {
            sum += exponential(scores[i] - most);
        }
        const float lse = most + std::log(sum);
        // Without smoothing the same bits: nothing is added to the target's score.
        const float even = job.smoothing / float(job.width), own = 1.0f - job.smoothing;
        float all = 0;
        if (job.smoothing > 0) {
            #pragma omp simd reduction(+ : all)
            for (int64_t i = 0; i < job.width; i++) {
                all += scores[i];
            }
        }
        job.losses[row] = weight * (lse - (own * scores[target] + even * all));
        if (!job.differentiate) {
            continue;
        }
        const float factor = weight / job.scaling;
        const auto slope = [&](float score) INLINE_LAMBDA {
            const float share = caps ? score / job.softcap : 0.0f;
            return factor * (1.0f - share * share);
        };
        #pragma omp simd
        for (int64_t i = 0; i < job.width; i++) {
            store((exponential(scores[i] - lse) - even) * slope(scores[i]), logits[i]);
        }
        store((std::exp(scores[target] - lse) - even - own) * slope(scores[target]), logits[target]);
    }
}

template <typename T> INLINE void entropy_of(const Job &job, int64_t from, int64_t to) {
    job.softcap == 0 ? entropy<false, T>(job, from, to) : entropy<true, T>(job, from, to);
}

FOR_EVERY_CPU void entropy_float(const Job &job, int64_t from, int64_t to) { entropy_of<float>(job, from, to); }
FOR_EVERY_CPU void entropy_bfloat16(const Job &job, int64_t from, int64_t to) { entropy_of<bfloat16>(job, from, to); }

} // namespace

extern "C" {

char *heirloom_cross_entropy(const Job *job) {
    return heirloom_guarded([&] {
        at::parallel_for(0, job->rows, 8, [&](int64_t from, int64_t to) {
            job->bfloat16s ? entropy_bfloat16(*job, from, to) : entropy_float(*job, from, to);
        });
    });
}
}
