// Cross-entropy of rows of logits and its gradient, in the place of the logits: a block for
// each row, which it reads twice.
//
// References: engine/shim/cross_entropy.cpp; Liger kernels (arXiv 2410.10989), section 3.2.

struct CrossEntropy {
    int kind;
    int differentiate; // whether gradients take the place of the logits
    i64 rows, width;
    float scaling, softcap; // what logits are divided by; no cap where it is 0
    float smoothing;        // share of the target that all tokens have alike
    void *logits;           // [rows, width]
    const i64 *targets;
    const float *weights; // of rows, or null
    float *losses;        // [rows], times their weights
};

template <bool CAPS> __device__ inline float score_of(const CrossEntropy &job, float logit) {
    const float scaled = logit / job.scaling;
    return CAPS ? job.softcap * tanhf(scaled / job.softcap) : scaled;
}

// The derivative of the cap at a score, times the weight of the row.
template <bool CAPS> __device__ inline float slope(const CrossEntropy &job, float factor, float score) {
    const float share = CAPS ? score / job.softcap : 0.0f;
    return factor * (1.0f - share * share);
}

template <bool CAPS, typename T, int N> __device__ void entropy(const CrossEntropy &job) {
    const i64 row = blockIdx.x, count = job.width / N, target = job.targets[row];
    Pack<T, N> *logits = packs<T, N>(job.logits, row * job.width);
    // Exponentials are added up relative to the largest score so far.
    float most = Largest::NOTHING, sum = 0, all = 0;
    for (i64 i = threadIdx.x; i < count; i += blockDim.x) {
        const Pack<T, N> here = logits[i];
        float scores[N], larger = most;
        for (int k = 0; k < N; k++) {
            scores[k] = score_of<CAPS>(job, load(here.x[k]));
            larger = Largest::of(larger, scores[k]);
            all += scores[k];
        }
        sum *= expf(most - larger);
        most = larger;
        for (int k = 0; k < N; k++) {
            sum += expf(scores[k] - most);
        }
    }
    const float largest = over_block<Largest>(most);
    const float lse = largest + logf(over_block<Sum>(sum * expf(most - largest)));
    const float score = score_of<CAPS>(job, load(static_cast<const T *>(job.logits)[row * job.width + target]));
    const float weight = job.weights ? job.weights[row] : 1.0f;
    const float even = job.smoothing / float(job.width), own = 1.0f - job.smoothing;
    // Asked of all rows alike: no thread waits for another that does not come.
    const float scores_of_all = job.smoothing > 0.0f ? over_block<Sum>(all) : 0.0f;
    if (threadIdx.x == 0) {
        job.losses[row] = weight * (lse - (own * score + even * scores_of_all));
    }
    if (!job.differentiate) {
        return;
    }
    // Whoever is late still reads the logit of the target.
    __syncthreads();
    const float factor = weight / job.scaling;
    for (i64 i = threadIdx.x; i < count; i += blockDim.x) {
        Pack<T, N> here = logits[i];
        for (int k = 0; k < N; k++) {
            const float score = score_of<CAPS>(job, load(here.x[k]));
            const float expected = even + (i * N + k == target ? own : 0.0f);
            store((expf(score - lse) - expected) * slope<CAPS>(job, factor, score), here.x[k]);
        }
        logits[i] = here;
    }
}

template <typename T, int N> __device__ void entropy_of(const CrossEntropy &job) {
    job.softcap == 0.0f ? entropy<false, T, N>(job) : entropy<true, T, N>(job);
}

template <typename T> __device__ void cross_entropy(const CrossEntropy &job) {
    const bool in_packs = multiples(FULL<T>, job.width) && aligned(16, job.logits);
    in_packs ? entropy_of<T, FULL<T>>(job) : entropy_of<T, 1>(job);
}

extern "C" {
__global__ void cross_entropy_f32(const CrossEntropy job) { cross_entropy<float>(job); }
__global__ void cross_entropy_bf16(const CrossEntropy job) { cross_entropy<bfloat16>(job); }
}
