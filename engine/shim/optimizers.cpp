// Steps of optimisers on CPU beside AdamW (elementwise.cpp): Lion, AdamW with running means in
// blocks of eight bits, Adafactor.
//
// Owns arithmetic alone: Rust's side (engine/src/ops/optimizers.rs) makes the tensors and checks
// their sizes. How many threads share the work changes no number.
//
// References: bitsandbytes 0.50, backends/triton/kernels_optim.py; Transformers'
// optimization.Adafactor.

#include "processors.h"

#include <ATen/Parallel.h>
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace {

// Elements that make a thread worth waking; as many as in libtorch's own loops.
constexpr int64_t GRAIN = 32768;

// ---- Lion

struct Lion {
    int64_t count;
    float *weights, *mean;
    const float *gradient;
    float keep; // 1 - lr · weight decay
    float lr;
    float beta1, beta2;
    float new1, new2; // 1 - beta, rounded once
};

FOR_EVERY_CPU void lion(const Lion &job, int64_t from, int64_t to) {
    float *__restrict weights = job.weights, *__restrict mean = job.mean;
    const float *__restrict gradient = job.gradient;
#pragma omp simd
    for (int64_t i = from; i < to; i++) {
        const float g = gradient[i];
        const float along = job.beta1 * mean[i] + job.new1 * g;
        const float sign = float(along > 0.0f) - float(along < 0.0f);
        weights[i] = job.keep * weights[i] - job.lr * sign;
        mean[i] = job.beta2 * mean[i] + job.new2 * g;
    }
}

// ---- AdamW in blocks of eight bits

// Elements that share a scale.
constexpr int64_t BLOCK = 256;

struct AdamW8bit {
    int64_t blocks;
    float *weights;
    uint8_t *mean, *square;           // codes, BLOCK for each block
    float *mean_absmax, *square_absmax; // scales, one for each block
    const float *mean_map, *square_map; // what the 256 codes stand for, ascending
    const float *gradient;
    float keep;
    float beta1, beta2;
    float new1, new2;
    float step; // lr / (1 - beta1^n)
    float root; // sqrt(1 - beta2^n)
    float eps;
};

// The code whose number is nearest, the lower of two.
INLINE int32_t nearest(const float *map, float x) {
    int32_t low = 0;
    for (int32_t step = 128; step > 0; step >>= 1) {
        low += map[low + step] <= x ? step : 0;
    }
    const int32_t high = low < 255 ? low + 1 : 255;
    return std::fabs(x - map[high]) < std::fabs(x - map[low]) ? high : low;
}

INLINE void pack(const float *values, const float *map, uint8_t *__restrict codes, float &absmax) {
    float most = 0;
#pragma omp simd reduction(max : most)
    for (int64_t i = 0; i < BLOCK; i++) {
        most = std::max(most, std::fabs(values[i]));
    }
    most = most == 0.0f ? 1.0f : most;
    absmax = most;
#pragma omp simd
    for (int64_t i = 0; i < BLOCK; i++) {
        codes[i] = uint8_t(nearest(map, values[i] / most));
    }
}

FOR_EVERY_CPU void adamw_8bit(const AdamW8bit &job, int64_t from, int64_t to) {
    float means[BLOCK], squares[BLOCK];
    for (int64_t block = from; block < to; block++) {
        float *__restrict weights = job.weights + block * BLOCK;
        const float *__restrict gradient = job.gradient + block * BLOCK;
        uint8_t *mean = job.mean + block * BLOCK, *square = job.square + block * BLOCK;
        const float mean_absmax = job.mean_absmax[block], square_absmax = job.square_absmax[block];
#pragma omp simd
        for (int64_t i = 0; i < BLOCK; i++) {
            const float g = gradient[i];
            means[i] = job.beta1 * (job.mean_map[mean[i]] * mean_absmax) + job.new1 * g;
            squares[i] = job.beta2 * (job.square_map[square[i]] * square_absmax) + job.new2 * g * g;
            const float spread = std::sqrt(squares[i]) / job.root + job.eps;
            weights[i] = job.keep * weights[i] - job.step * means[i] / spread;
        }
        pack(means, job.mean_map, mean, job.mean_absmax[block]);
        pack(squares, job.square_map, square, job.square_absmax[block]);
    }
}

// ---- Adafactor

// A tensor of `batches` matrices; of a vector, one matrix of one row, whose squares are kept whole.
struct Adafactor {
    int64_t batches, rows, columns;
    int32_t factored;
    float *weights;
    float *row_squares;    // [batches, rows]
    float *column_squares; // [batches, columns]; of a vector, its own
    float *mean;           // of steps, or null
    const float *gradient;
    float decay; // of the running squares
    float eps;
    float least_scale; // of a weight, or negative where its size does not matter
    float clip_threshold;
    float lr;
    float weight_decay;
    float beta1;
};

// Adds `rows` rows of squared gradients up, by row and by column; in f64, in their order.
FOR_EVERY_CPU void add_squares(const float *gradient, int64_t rows, int64_t columns, float eps, double *__restrict by_row,
                               double *__restrict by_column) {
    for (int64_t row = 0; row < rows; row++) {
        const float *__restrict g = gradient + row * columns;
        double sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < columns; i++) {
            const double square = double(g[i] * g[i] + eps);
            sum += square;
            by_column[i] += square;
        }
        by_row[row] = sum;
    }
}

FOR_EVERY_CPU double squares_of(const float *values, int64_t count) {
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < count; i++) {
        sum += double(values[i]) * double(values[i]);
    }
    return sum;
}

FOR_EVERY_CPU double step_squares(const float *__restrict g, const float *__restrict factors, float factor,
                                  int64_t count) {
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < count; i++) {
        const double step = double(factor * factors[i] * g[i]);
        sum += step * step;
    }
    return sum;
}

FOR_EVERY_CPU void move(float *__restrict w, const float *__restrict g, const float *__restrict factors,
                        float factor, float keep, int64_t count) {
#pragma omp simd
    for (int64_t i = 0; i < count; i++) {
        w[i] = keep * w[i] - factor * factors[i] * g[i];
    }
}

FOR_EVERY_CPU void move_by_mean(float *__restrict w, const float *__restrict g, const float *__restrict factors,
                                float *__restrict mean, float factor, float beta1, float keep, int64_t count) {
#pragma omp simd
    for (int64_t i = 0; i < count; i++) {
        mean[i] = beta1 * mean[i] + (1.0f - beta1) * (factor * factors[i] * g[i]);
        w[i] = keep * w[i] - mean[i];
    }
}

// The factors of rows and columns by which gradients become steps, from running squares that
// are brought up to date first.
void find_factors(const Adafactor &job, std::vector<float> &by_row, std::vector<float> &by_column) {
    const int64_t rows = job.rows, columns = job.columns;
    for (int64_t batch = 0; batch < job.batches; batch++) {
        std::vector<double> row_sums(rows, 0.0), column_sums(columns, 0.0);
        const float *gradient = job.gradient + batch * rows * columns;
        add_squares(gradient, rows, columns, job.eps, row_sums.data(), column_sums.data());
        float *row_squares = job.row_squares + batch * rows, *column_squares = job.column_squares + batch * columns;
        const double fresh = 1.0 - double(job.decay);
        double total = 0;
        for (int64_t row = 0; job.factored && row < rows; row++) {
            row_squares[row] = float(job.decay * row_squares[row] + fresh * row_sums[row] / double(columns));
            total += row_squares[row];
        }
        for (int64_t i = 0; i < columns; i++) {
            column_squares[i] = float(job.decay * column_squares[i] + fresh * column_sums[i] / double(rows));
            by_column[batch * columns + i] = 1.0f / std::sqrt(column_squares[i]);
        }
        const float mean = float(total / double(rows));
        for (int64_t row = 0; row < rows; row++) {
            by_row[batch * rows + row] = job.factored ? 1.0f / std::sqrt(row_squares[row] / mean) : 1.0f;
        }
    }
}

void adafactor(const Adafactor &job) {
    const int64_t columns = job.columns, rows = job.batches * job.rows, count = rows * columns;
    if (count == 0) {
        return;
    }
    std::vector<float> by_row(rows), by_column(job.batches * columns);
    find_factors(job, by_row, by_column);
    const auto factors = [&](int64_t row) { return by_column.data() + row / job.rows * columns; };
    double sum = 0;
    for (int64_t row = 0; row < rows; row++) {
        sum += step_squares(job.gradient + row * columns, factors(row), by_row[row], columns);
    }
    const float length = float(std::sqrt(sum / double(count)));
    float lr = job.lr;
    if (job.least_scale >= 0.0f) {
        lr *= std::max(job.least_scale, float(std::sqrt(squares_of(job.weights, count) / double(count))));
    }
    const float scale = lr / std::max(1.0f, length / job.clip_threshold), keep = 1.0f - lr * job.weight_decay;
    const int64_t grain = std::max<int64_t>(1, GRAIN / columns);
    at::parallel_for(0, rows, grain, [&](int64_t from, int64_t to) {
        for (int64_t row = from; row < to; row++) {
            float *w = job.weights + row * columns;
            const float *g = job.gradient + row * columns;
            const float factor = by_row[row] * scale;
            if (job.mean) {
                move_by_mean(w, g, factors(row), job.mean + row * columns, factor, job.beta1, keep, columns);
            } else {
                move(w, g, factors(row), factor, keep, columns);
            }
        }
    });
}

} // namespace

extern "C" {

void heirloom_lion(const Lion *job) {
    at::parallel_for(0, job->count, GRAIN, [&](int64_t from, int64_t to) { lion(*job, from, to); });
}

void heirloom_adamw_8bit(const AdamW8bit *job) {
    at::parallel_for(0, job->blocks, GRAIN / BLOCK, [&](int64_t from, int64_t to) { adamw_8bit(*job, from, to); });
}

void heirloom_adafactor(const Adafactor *job) { adafactor(*job); }
}
