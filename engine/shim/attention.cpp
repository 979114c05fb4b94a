// Causal attention within documents that lie end to end, on CPU: forward and backward.
//
// Owns arithmetic alone: Rust's side (engine/src/ops/attention/fused.rs) makes the tensors and
// checks their shapes. Numbers are stored as f32 or bfloat16; products add up in f32, and so
// does the softmax. Blocks that no query sees are not computed. The query heads that share a
// key head are rows of one product.
//
// References: FlashAttention-2 (arXiv 2307.08691) for the softmax in blocks and its gradient;
// `at::native::cpublas::brgemm` for products of small matrices that lie in the cache. Its right
// operand in bfloat16 has pairs of rows interleaved, as the processor's instructions want them.

#include "numbers.h"
#include "shim.h"

#include <ATen/Parallel.h>
#include <ATen/native/CPUBlas.h>
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <memory>
#include <vector>

namespace {

// Queries, times the heads that share a key, and keys of a block.
constexpr int64_t ROWS = 128;
constexpr int64_t KEYS = 256;
// Sizes of products are multiples of this: for each size a function is compiled and kept.
constexpr int64_t STEP = 32;

constexpr int64_t up(int64_t size, int64_t step) { return (size + step - 1) / step * step; }

// Rows of one head, or of the heads of a group: each position has `group` of them.
struct View {
    const void *data;
    int64_t position, head; // distances in elements
};

struct Job {
    int32_t bfloat16s;
    float scale, softcap; // no cap where it is 0
    int64_t documents;
    const int64_t *starts; // of each document, and the end
    int64_t heads, kv_heads, width, value_width;
    int64_t window; // keys that a query sees, its own included
    const float *sinks; // [heads], or null
    View q, k, v;
    void *output; // [n, heads, value_width]
    float *lse;   // [n, heads], logarithm of the sum of exponentials
    // Of the backward pass alone.
    const void *gradient; // of the output
    float *delta;         // [n, heads], output · gradient
    void *q_gradient, *k_gradient, *v_gradient; // dense
};

// ---- Matrices of a block, dense and padded with zeros

// Rows of a view, widened to `padded_width` and to `padded` rows.
template <typename C>
INLINE void gather(const C *from, int64_t position, int64_t head, int64_t group, int64_t rows,
                   int64_t width, int64_t padded, int64_t padded_width, C *to) {
    for (int64_t row = 0; row < padded; row++, to += padded_width) {
        int64_t filled = 0;
        if (row < rows) {
            const C *source = from + row / group * position + row % group * head;
            for (; filled < width; filled++) {
                to[filled] = source[filled];
            }
        }
        for (; filled < padded_width; filled++) {
            to[filled] = C(0);
        }
    }
}

// A right operand of as many rows and columns: in f32 the matrix itself.
INLINE const float *right(const float *matrix, int64_t, int64_t, float *) { return matrix; }
INLINE const bfloat16 *right(const bfloat16 *matrix, int64_t rows, int64_t columns, bfloat16 *space) {
    uint32_t *to = reinterpret_cast<uint32_t *>(space);
    for (int64_t row = 0; row < rows; row += 2, to += columns) {
        const bfloat16 *even = matrix + row * columns, *odd = even + columns;
        for (int64_t column = 0; column < columns; column++) {
            to[column] = uint32_t(even[column].x) | uint32_t(odd[column].x) << 16;
        }
    }
    return space;
}

template <typename T>
INLINE void transpose(const T *matrix, int64_t rows, int64_t columns, T *to, int64_t distance) {
    for (int64_t block = 0; block < rows; block += 16) {
        for (int64_t column = 0; column < columns; column++) {
            for (int64_t row = block; row < std::min(block + 16, rows); row++) {
                to[column * distance + row] = matrix[row * columns + column];
            }
        }
    }
}

// The transpose of a matrix as a right operand whose rows are `distance` apart.
INLINE void right_transposed(const float *matrix, int64_t rows, int64_t columns, float *to, int64_t distance) {
    transpose(matrix, rows, columns, to, distance);
}
INLINE void right_transposed(const bfloat16 *matrix, int64_t rows, int64_t columns, bfloat16 *to, int64_t distance) {
    // A pair of neighbours is moved as one number.
    transpose(reinterpret_cast<const uint32_t *>(matrix), rows, columns / 2, reinterpret_cast<uint32_t *>(to), distance);
}

// to = left · right, or to += left · right, in f32.
template <typename C>
void multiply(int64_t m, int64_t n, int64_t k, const C *left, int64_t left_distance, const C *right,
              int64_t right_distance, float *to, int64_t to_distance, bool add) {
    at::native::cpublas::brgemm(m, n, k, left_distance, right_distance, to_distance, add, left, right, to,
                                std::is_same_v<C, bfloat16>);
}

// Whether bfloat16 can be multiplied as above on this processor: tried, once.
bool multiplies_bfloat16() {
    static const bool works = [] {
        alignas(64) bfloat16 left[2 * 16], right[16 * 16];
        alignas(64) float product[2 * 16];
        for (int64_t i = 0; i < 2 * 16; i++) { left[i] = bfloat16(float(i % 7)); }
        for (int64_t i = 0; i < 16 * 16; i++) { right[i] = bfloat16(float(i % 5)); }
        try {
            multiply(2, 16, 16, left, 16, right, 16, product, 16, false);
            at::native::cpublas::brgemm_release();
        } catch (const std::exception &) {
            return false;
        }
        for (int64_t i = 0; i < 2 * 16; i++) {
            float sum = 0;
            for (int64_t k = 0; k < 16; k++) {
                sum += float(left[i / 16 * 16 + k]) * float(right[k / 2 * 32 + i % 16 * 2 + k % 2]);
            }
            if (sum != product[i]) { return false; }
        }
        return true;
    }();
    return works;
}

// Memory of a thread.
class Space {
  public:
    template <typename T> T *take(int64_t count) {
        blocks.emplace_back(std::aligned_alloc(64, up(count * sizeof(T) + 1, 64)), std::free);
        if (!blocks.back()) { throw std::bad_alloc(); }
        return static_cast<T *>(blocks.back().get());
    }

  private:
    std::vector<std::unique_ptr<void, decltype(&std::free)>> blocks;
};

// ---- A block: some queries of a document against some of its keys

struct Block {
    int64_t group;
    int64_t first, rows, padded_rows; // position of the first query; queries times group
    int64_t key, keys;                // the first key, and how many
    int64_t window;
    float scale, softcap;
};

template <bool caps> INLINE float logit(float score, const Block &block) {
    const float scaled = score * block.scale;
    return caps ? block.softcap * hyperbolic_tangent(scaled / block.softcap) : scaled;
}

// Turns scores [rows, keys] into weights, relative to the largest logit of each row so far,
// and what was added up before to the same measure.
template <bool caps, typename C>
INLINE void soften(const Block &block, float *scores, C *weights, float *largest, float *sums,
                   float *output, int64_t width) {
    for (int64_t row = 0; row < block.padded_rows; row++, scores += block.keys, weights += block.keys) {
        const int64_t position = block.first + row / block.group;
        const int64_t from = std::max<int64_t>(0, position - block.window + 1 - block.key);
        const int64_t to = row < block.rows ? std::min(block.keys, position + 1 - block.key) : 0;
        if (from >= to) {
            std::fill(weights, weights + block.keys, C(0));
            continue;
        }
        float most = largest[row];
        #pragma omp simd reduction(max : most)
        for (int64_t key = from; key < to; key++) {
            scores[key] = logit<caps>(scores[key], block);
            most = scores[key] > most ? scores[key] : most;
        }
        float sum = 0;
        #pragma omp simd reduction(+ : sum)
        for (int64_t key = from; key < to; key++) {
            const float weight = exponential(scores[key] - most);
            sum += weight;
            store(weight, weights[key]);
        }
        std::fill(weights, weights + from, C(0));
        std::fill(weights + to, weights + block.keys, C(0));
        const float before = exponential(largest[row] - most);
        sums[row] = sums[row] * before + sum;
        largest[row] = most;
        for (int64_t column = 0; column < width; column++) {
            output[row * width + column] *= before;
        }
    }
}

// From scores and the gradients of weights, transposed as [keys, rows], the weights and the
// gradients of products.
template <bool caps, typename C>
INLINE void harden(const Block &block, const float *scores, const float *gradients, const float *lse,
                   const float *delta, C *weights, C *results) {
    const int64_t width = block.padded_rows;
    for (int64_t key = 0; key < block.keys; key++) {
        const int64_t ahead = block.key + key - block.first;
        const int64_t to = std::clamp<int64_t>((ahead + block.window) * block.group, 0, block.rows);
        const int64_t from = std::clamp<int64_t>(ahead * block.group, 0, to);
        std::fill(weights, weights + from, C(0));
        std::fill(results, results + from, C(0));
        #pragma omp simd
        for (int64_t row = from; row < to; row++) {
            const float capped = logit<caps>(scores[row], block);
            const float weight = exponential(capped - lse[row]);
            float gradient = weight * (gradients[row] - delta[row]) * block.scale;
            if (caps) {
                const float share = capped / block.softcap;
                gradient *= 1.0f - share * share;
            }
            store(weight, weights[row]);
            store(gradient, results[row]);
        }
        std::fill(weights + to, weights + width, C(0));
        std::fill(results + to, results + width, C(0));
        scores += width, gradients += width, weights += width, results += width;
    }
}

// ---- A document under a key head

struct Shape {
    int64_t group, width, value_width; // padded widths
    int64_t positions, rows;           // of a block of queries; rows padded
    int64_t longest;                   // document, padded

    explicit Shape(const Job &job)
        : group(job.heads / job.kv_heads), width(up(job.width, 16)), value_width(up(job.value_width, 16)),
          positions(std::max<int64_t>(1, ROWS / group)), rows(up(positions * group, STEP)), longest(0) {
        for (int64_t document = 0; document < job.documents; document++) {
            longest = std::max(longest, up(job.starts[document + 1] - job.starts[document], STEP));
        }
    }
};

// Calls `work` with every block of keys that the queries of `block` see.
template <typename Work> INLINE void over_keys(Block block, int64_t length, const Work &work) {
    const int64_t last = std::min(length, block.first + (block.rows + block.group - 1) / block.group);
    const int64_t seen = std::max<int64_t>(0, block.first - block.window + 1);
    for (block.key = seen / KEYS * KEYS; block.key < last; block.key += KEYS) {
        block.keys = std::min(KEYS, up(last, STEP) - block.key);
        work(block);
    }
}

// Calls `work` with every block of queries of a document.
template <typename Work> INLINE void over_queries(const Job &job, const Shape &shape, int64_t length, const Work &work) {
    for (int64_t first = 0; first < length; first += shape.positions) {
        const int64_t rows = std::min(shape.positions, length - first) * shape.group;
        work(Block{shape.group, first, rows, up(rows, STEP), 0, 0, std::min(job.window, length), job.scale, job.softcap});
    }
}

template <typename C> INLINE const C *place(const View &view, int64_t position, int64_t head) {
    return static_cast<const C *>(view.data) + position * view.position + head * view.head;
}

template <typename C> INLINE void forward(const Job &job, int64_t from, int64_t to) {
    const Shape shape(job);
    Space space;
    C *keys = space.take<C>(shape.longest * shape.width);
    C *turned_keys = space.take<C>(up(shape.longest, KEYS) * shape.width);
    C *values = space.take<C>(shape.longest * shape.value_width);
    C *paired_values = space.take<C>(shape.longest * shape.value_width);
    C *queries = space.take<C>(shape.rows * shape.width);
    C *weights = space.take<C>(shape.rows * KEYS);
    float *scores = space.take<float>(shape.rows * KEYS);
    float *output = space.take<float>(shape.rows * shape.value_width);
    float *largest = space.take<float>(shape.rows), *sums = space.take<float>(shape.rows);
    for (int64_t task = from; task < to; task++) {
        const int64_t kv_head = task / job.documents, start = job.starts[task % job.documents];
        const int64_t length = job.starts[task % job.documents + 1] - start, padded = up(length, STEP);
        gather(place<C>(job.k, start, kv_head), job.k.position, 0, 1, length, job.width, padded, shape.width, keys);
        gather(place<C>(job.v, start, kv_head), job.v.position, 0, 1, length, job.value_width, padded, shape.value_width, values);
        for (int64_t key = 0; key < padded; key += KEYS) {
            right_transposed(keys + key * shape.width, std::min(KEYS, padded - key), shape.width, turned_keys + key * shape.width, KEYS);
        }
        const C *right_values = right(values, padded, shape.value_width, paired_values);
        over_queries(job, shape, length, [&](const Block &block) INLINE_LAMBDA {
            const int64_t first = start + block.first, head = kv_head * shape.group;
            gather(place<C>(job.q, first, head), job.q.position, job.q.head, shape.group, block.rows, job.width,
                   block.padded_rows, shape.width, queries);
            for (int64_t row = 0; row < block.rows; row++) {
                largest[row] = job.sinks ? job.sinks[head + row % shape.group] : -std::numeric_limits<float>::infinity();
                sums[row] = job.sinks ? 1.0f : 0.0f;
            }
            std::fill(output, output + block.padded_rows * shape.value_width, 0.0f);
            over_keys(block, length, [&](const Block &block) INLINE_LAMBDA {
                multiply(block.padded_rows, block.keys, shape.width, queries, shape.width,
                         turned_keys + block.key * shape.width, KEYS, scores, block.keys, false);
                job.softcap == 0 ? soften<false>(block, scores, weights, largest, sums, output, shape.value_width)
                                 : soften<true>(block, scores, weights, largest, sums, output, shape.value_width);
                multiply(block.padded_rows, shape.value_width, block.keys, weights, block.keys,
                         right_values + block.key * shape.value_width, shape.value_width, output, shape.value_width, true);
            });
            for (int64_t row = 0; row < block.rows; row++) {
                const int64_t place = (first + row / shape.group) * job.heads + head + row % shape.group;
                const float share = 1.0f / sums[row];
                C *result = static_cast<C *>(job.output) + place * job.value_width;
                for (int64_t column = 0; column < job.value_width; column++) {
                    store(output[row * shape.value_width + column] * share, result[column]);
                }
                job.lse[place] = largest[row] + std::log(sums[row]);
            }
        });
    }
}

template <typename C> INLINE void backward(const Job &job, int64_t from, int64_t to) {
    const Shape shape(job);
    Space space;
    C *keys = space.take<C>(shape.longest * shape.width);
    C *turned_keys = space.take<C>(up(shape.longest, KEYS) * shape.width);
    C *values = space.take<C>(shape.longest * shape.value_width);
    float *key_gradients = space.take<float>(shape.longest * shape.width);
    float *value_gradients = space.take<float>(shape.longest * shape.value_width);
    C *queries = space.take<C>(shape.rows * shape.width);
    C *paired_queries = space.take<C>(shape.rows * shape.width);
    C *turned_queries = space.take<C>(shape.rows * shape.width);
    C *given = space.take<C>(shape.rows * shape.value_width);
    C *paired_given = space.take<C>(shape.rows * shape.value_width);
    C *turned_given = space.take<C>(shape.rows * shape.value_width);
    float *query_gradients = space.take<float>(shape.rows * shape.width);
    float *scores = space.take<float>(shape.rows * KEYS), *gradients = space.take<float>(shape.rows * KEYS);
    C *weights = space.take<C>(shape.rows * KEYS);
    C *results = space.take<C>(shape.rows * KEYS), *paired_results = space.take<C>(shape.rows * KEYS);
    float *lse = space.take<float>(shape.rows), *delta = space.take<float>(shape.rows);
    for (int64_t task = from; task < to; task++) {
        const int64_t kv_head = task / job.documents, start = job.starts[task % job.documents];
        const int64_t length = job.starts[task % job.documents + 1] - start, padded = up(length, STEP);
        gather(place<C>(job.k, start, kv_head), job.k.position, 0, 1, length, job.width, padded, shape.width, keys);
        gather(place<C>(job.v, start, kv_head), job.v.position, 0, 1, length, job.value_width, padded, shape.value_width, values);
        for (int64_t key = 0; key < padded; key += KEYS) {
            transpose(keys + key * shape.width, std::min(KEYS, padded - key), shape.width, turned_keys + key * shape.width, KEYS);
        }
        std::fill(key_gradients, key_gradients + padded * shape.width, 0.0f);
        std::fill(value_gradients, value_gradients + padded * shape.value_width, 0.0f);
        over_queries(job, shape, length, [&](const Block &block) INLINE_LAMBDA {
            const int64_t rows = block.padded_rows, head = kv_head * shape.group;
            const int64_t first = start + block.first, dense = first * job.heads + head;
            gather(place<C>(job.q, first, head), job.q.position, job.q.head, shape.group, block.rows, job.width,
                   rows, shape.width, queries);
            gather(static_cast<const C *>(job.gradient) + dense * job.value_width, job.heads * job.value_width,
                   job.value_width, shape.group, block.rows, job.value_width, rows, shape.value_width, given);
            right_transposed(queries, rows, shape.width, turned_queries, rows);
            right_transposed(given, rows, shape.value_width, turned_given, rows);
            const C *right_queries = right(queries, rows, shape.width, paired_queries);
            const C *right_given = right(given, rows, shape.value_width, paired_given);
            for (int64_t row = 0; row < block.rows; row++) {
                const int64_t place = dense + row / shape.group * job.heads + row % shape.group;
                const C *output = static_cast<const C *>(job.output) + place * job.value_width;
                float sum = 0;
                #pragma omp simd reduction(+ : sum)
                for (int64_t column = 0; column < job.value_width; column++) {
                    sum += load(output[column]) * load(given[row * shape.value_width + column]);
                }
                job.delta[place] = delta[row] = sum;
                lse[row] = job.lse[place];
            }
            std::fill(query_gradients, query_gradients + rows * shape.width, 0.0f);
            over_keys(block, length, [&](const Block &block) INLINE_LAMBDA {
                const int64_t count = block.keys;
                multiply(count, rows, shape.width, keys + block.key * shape.width, shape.width, turned_queries, rows, scores, rows, false);
                multiply(count, rows, shape.value_width, values + block.key * shape.value_width, shape.value_width, turned_given, rows, gradients, rows, false);
                job.softcap == 0 ? harden<false>(block, scores, gradients, lse, delta, weights, results)
                                 : harden<true>(block, scores, gradients, lse, delta, weights, results);
                multiply(count, shape.value_width, rows, weights, rows, right_given, shape.value_width,
                         value_gradients + block.key * shape.value_width, shape.value_width, true);
                multiply(count, shape.width, rows, results, rows, right_queries, shape.width,
                         key_gradients + block.key * shape.width, shape.width, true);
                multiply(shape.width, rows, count, turned_keys + block.key * shape.width, KEYS,
                         right(results, count, rows, paired_results), rows, query_gradients, rows, true);
            });
            for (int64_t row = 0; row < block.rows; row++) {
                const int64_t place = dense + row / shape.group * job.heads + row % shape.group;
                C *result = static_cast<C *>(job.q_gradient) + place * job.width;
                for (int64_t column = 0; column < job.width; column++) {
                    store(query_gradients[column * rows + row], result[column]);
                }
            }
        });
        for (int64_t row = 0; row < length; row++) {
            const int64_t place = (start + row) * job.kv_heads + kv_head;
            C *key = static_cast<C *>(job.k_gradient) + place * job.width;
            for (int64_t column = 0; column < job.width; column++) {
                store(key_gradients[row * shape.width + column], key[column]);
            }
            C *value = static_cast<C *>(job.v_gradient) + place * job.value_width;
            for (int64_t column = 0; column < job.value_width; column++) {
                store(value_gradients[row * shape.value_width + column], value[column]);
            }
        }
    }
}

FOR_EVERY_CPU void forward_float(const Job &job, int64_t from, int64_t to) { forward<float>(job, from, to); }
FOR_EVERY_CPU void forward_bfloat16(const Job &job, int64_t from, int64_t to) { forward<bfloat16>(job, from, to); }
FOR_EVERY_CPU void backward_float(const Job &job, int64_t from, int64_t to) { backward<float>(job, from, to); }
FOR_EVERY_CPU void backward_bfloat16(const Job &job, int64_t from, int64_t to) { backward<bfloat16>(job, from, to); }

// In as many threads as libtorch has; each document and key head is one thread's, so that
// their number changes no sum.
template <typename Work> void share(const Job &job, const Work &work) {
    at::parallel_for(0, job.documents * job.kv_heads, 1, [&](int64_t from, int64_t to) {
        work(job, from, to);
        at::native::cpublas::brgemm_release(job.bfloat16s);
    });
}

} // namespace

extern "C" {

// Whether this processor can be given bfloat16s.
bool heirloom_attention_multiplies_bfloat16() { return multiplies_bfloat16(); }

char *heirloom_attention(const Job *job) {
    return heirloom_guarded([&] {
        share(*job, job->bfloat16s ? forward_bfloat16 : forward_float);
    });
}

char *heirloom_attention_backward(const Job *job) {
    return heirloom_guarded([&] {
        share(*job, job->bfloat16s ? backward_bfloat16 : backward_float);
    });
}
}
