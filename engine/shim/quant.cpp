// Quantised weights: NF4 packed and unpacked, int8 and e4m3 unpacked, on the CPU.
//
// Owns the loops only: what the formats mean, and the same in tensor calls, stands in
// engine/src/quant. Every loop gives the bits that the tensor calls give, however many
// threads share it and whatever instructions the processor has.

#include "shim.h"

#include <torch/torch.h>

#include <ATen/Parallel.h>
#include <limits>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

// One copy of a loop for each generation of processors, chosen when the program starts.
#if defined(__x86_64__) && defined(__GLIBC__)
#define HEIRLOOM_CLONES __attribute__((target_clones("default", "avx2", "avx512f")))
#else
#define HEIRLOOM_CLONES
#endif
#define HEIRLOOM_INLINE inline __attribute__((always_inline))

namespace {

constexpr int64_t BLOCK = 64;
constexpr int64_t BLOCK_BYTES = BLOCK / 2;
// So many values are worth a thread of their own.
constexpr int64_t GRAIN = 1 << 17;
// bitsandbytes divides by no less than this, and keeps it of a last block that is not full.
constexpr float SMALLEST = 1e-38f;

constexpr float NF4[16] = {
    -1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f,
    -0.28444138169288635f, -0.18477343022823334f, -0.09105003625154495f, 0.0f,
    0.07958029955625534f, 0.16093020141124725f, 0.24611230194568634f, 0.33791524171829224f,
    0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f};

// Rounds to nearest, ties to even. Not a conversion of c10's, whose test for numbers that are
// none keeps the loop from being made of vector instructions.
HEIRLOOM_INLINE void put(float value, c10::BFloat16 *out) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof(bits));
    bits = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    out->x = static_cast<uint16_t>(value != value ? 0x7fc0 : bits);
}

HEIRLOOM_INLINE void put(float value, float *out) { *out = value; }

// NF4

// The number of the nearest code; between two, the lower.
HEIRLOOM_INLINE uint8_t nearest(float value) {
    uint8_t index = 0;
    for (int i = 0; i < 15; i++) {
        // So that a number that is none is the last, as in `bucketize`.
        index += !(value <= (NF4[i] + NF4[i + 1]) / 2);
    }
    return index;
}

// Packs `count` values; gives the largest of them, without sign.
template <typename T>
HEIRLOOM_INLINE float pack_block(const T *weight, int64_t count, uint8_t *packed) {
    float values[BLOCK] = {};
    uint8_t codes[BLOCK];
    float absmax = 0;
    for (int64_t i = 0; i < count; i++) {
        values[i] = static_cast<float>(weight[i]);
        float size = std::abs(values[i]);
        // A number that is none is the largest, and stays it.
        absmax = size > absmax || size != size ? size : absmax;
    }
    // bitsandbytes multiplies by the inverse where the block is full, and divides where not.
    float divisor = absmax < SMALLEST ? SMALLEST : absmax;
    float inverse = 1.0f / divisor;
    bool full = count == BLOCK;
    for (int64_t i = 0; i < BLOCK; i++) {
        float scaled = full ? values[i] * inverse : values[i] / divisor;
        scaled = scaled < -1.0f ? -1.0f : scaled;
        codes[i] = nearest(scaled > 1.0f ? 1.0f : scaled);
    }
    for (int64_t i = 0; i < (count + 1) / 2; i++) {
        packed[i] = static_cast<uint8_t>(codes[2 * i] << 4 | codes[2 * i + 1]);
    }
    return full ? absmax : divisor;
}

template <typename T>
HEIRLOOM_INLINE void pack_blocks(const T *weight, int64_t numel, int64_t first, int64_t last,
                                 uint8_t *packed, float *absmax) {
    for (int64_t block = first; block < last; block++) {
        int64_t start = block * BLOCK;
        int64_t count = std::min(BLOCK, numel - start);
        absmax[block] = pack_block(weight + start, count, packed + block * BLOCK_BYTES);
    }
}

HEIRLOOM_CLONES void pack(const float *weight, int64_t numel, int64_t first, int64_t last,
                          uint8_t *packed, float *absmax) {
    pack_blocks(weight, numel, first, last, packed, absmax);
}

HEIRLOOM_CLONES void pack(const c10::BFloat16 *weight, int64_t numel, int64_t first, int64_t last,
                          uint8_t *packed, float *absmax) {
    pack_blocks(weight, numel, first, last, packed, absmax);
}

HEIRLOOM_CLONES void pack(const c10::Half *weight, int64_t numel, int64_t first, int64_t last,
                          uint8_t *packed, float *absmax) {
    pack_blocks(weight, numel, first, last, packed, absmax);
}

template <typename T>
void unpack_block(const uint8_t *packed, float absmax, int64_t count, T *weight) {
    T table[16];
    for (int i = 0; i < 16; i++) {
        put(NF4[i] * absmax, &table[i]);
    }
    for (int64_t i = 0; i < count; i++) {
        uint8_t both = packed[i / 2];
        weight[i] = table[i % 2 ? both & 15 : both >> 4];
    }
}

#if defined(__x86_64__)
#define HEIRLOOM_AVX512 __attribute__((target("avx512f,avx512bw")))

// Where the sixteen products of a block fit one register, a lookup is one instruction.
HEIRLOOM_AVX512 void unpack_full(const uint8_t *packed, const float *absmax, int64_t blocks,
                                 c10::BFloat16 *weight) {
    const __m512 codes = _mm512_loadu_ps(NF4);
    const __m512i low = _mm512_set1_epi32(15), one = _mm512_set1_epi32(1);
    const __m512i below_half = _mm512_set1_epi32(0x7fff);
    for (int64_t block = 0; block < blocks; block++) {
        __m512i bits = _mm512_castps_si512(_mm512_mul_ps(codes, _mm512_set1_ps(absmax[block])));
        __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), one);
        bits = _mm512_add_epi32(_mm512_add_epi32(bits, below_half), odd);
        __m256i products = _mm512_cvtepi32_epi16(_mm512_srli_epi32(bits, 16));
        __m512i table = _mm512_broadcast_i64x4(products);
        for (int64_t half = 0; half < 2; half++) {
            const uint8_t *from = packed + block * BLOCK_BYTES + half * 16;
            __m512i both = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)from));
            __m512i second = _mm512_slli_epi32(_mm512_and_si512(both, low), 16);
            __m512i index = _mm512_or_si512(_mm512_srli_epi32(both, 4), second);
            _mm512_storeu_si512(weight + block * BLOCK + half * 32,
                                _mm512_permutexvar_epi16(index, table));
        }
    }
}

HEIRLOOM_AVX512 void unpack_full(const uint8_t *packed, const float *absmax, int64_t blocks,
                                 float *weight) {
    const __m512 codes = _mm512_loadu_ps(NF4);
    const __m512i low = _mm512_set1_epi64(15);
    for (int64_t block = 0; block < blocks; block++) {
        __m512 table = _mm512_mul_ps(codes, _mm512_set1_ps(absmax[block]));
        for (int64_t quarter = 0; quarter < 4; quarter++) {
            const uint8_t *from = packed + block * BLOCK_BYTES + quarter * 8;
            __m512i both = _mm512_cvtepu8_epi64(_mm_loadl_epi64((const __m128i *)from));
            __m512i second = _mm512_slli_epi64(_mm512_and_si512(both, low), 32);
            __m512i index = _mm512_or_si512(_mm512_srli_epi64(both, 4), second);
            _mm512_storeu_ps(weight + block * BLOCK + quarter * 16,
                             _mm512_permutexvar_ps(index, table));
        }
    }
}
#endif

template <typename T>
void unpack(const uint8_t *packed, const float *absmax, int64_t numel, int64_t first,
            int64_t last, T *weight) {
    int64_t block = first;
#if defined(__x86_64__)
    static const bool wide =
        __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw");
    if (wide) {
        block = std::min(last, numel / BLOCK);
        unpack_full(packed + first * BLOCK_BYTES, absmax + first, block - first,
                    weight + first * BLOCK);
    }
#endif
    for (; block < last; block++) {
        int64_t start = block * BLOCK;
        unpack_block(packed + block * BLOCK_BYTES, absmax[block], std::min(BLOCK, numel - start),
                     weight + start);
    }
}

// int8

// The number nearest to 1 / 127 that bitsandbytes multiplies with.
constexpr float ONE_127TH = 7.874015718698502e-3f;

template <typename T>
HEIRLOOM_INLINE void int8_rows(const int8_t *values, const float *absmax, int64_t columns,
                               int64_t first, int64_t last, T *weight) {
    for (int64_t row = first; row < last; row++) {
        for (int64_t i = row * columns; i < (row + 1) * columns; i++) {
            put(values[i] * absmax[row] * ONE_127TH, weight + i);
        }
    }
}

HEIRLOOM_CLONES void int8(const int8_t *values, const float *absmax, int64_t columns,
                          int64_t first, int64_t last, float *weight) {
    int8_rows(values, absmax, columns, first, last, weight);
}

HEIRLOOM_CLONES void int8(const int8_t *values, const float *absmax, int64_t columns,
                          int64_t first, int64_t last, c10::BFloat16 *weight) {
    int8_rows(values, absmax, columns, first, last, weight);
}

// e4m3

// A sign, four bits of exponent (bias 7) and three of mantissa; all ones is no number.
HEIRLOOM_INLINE float e4m3(uint8_t byte) {
    uint32_t size = byte & 0x7f;
    uint32_t normal_bits = (size << 20) + (120u << 23);
    float normal;
    memcpy(&normal, &normal_bits, sizeof(normal));
    float value = size < 8 ? static_cast<float>(static_cast<int32_t>(size)) * 0x1p-9f : normal;
    value = size == 0x7f ? std::numeric_limits<float>::quiet_NaN() : value;
    uint32_t bits;
    memcpy(&bits, &value, sizeof(bits));
    bits |= static_cast<uint32_t>(byte & 0x80) << 24;
    memcpy(&value, &bits, sizeof(value));
    return value;
}

struct Blocks {
    int64_t columns, rows_each, columns_each, across;
};

template <typename T>
HEIRLOOM_INLINE void fp8_rows(const uint8_t *values, const float *scales, Blocks blocks,
                              int64_t first, int64_t last, T *weight) {
    for (int64_t row = first; row < last; row++) {
        for (int64_t block = 0; block < blocks.across; block++) {
            float scale = scales[row / blocks.rows_each * blocks.across + block];
            int64_t start = row * blocks.columns;
            int64_t end = start + std::min(blocks.columns, (block + 1) * blocks.columns_each);
            for (int64_t i = start + block * blocks.columns_each; i < end; i++) {
                put(e4m3(values[i]) * scale, weight + i);
            }
        }
    }
}

HEIRLOOM_CLONES void fp8(const uint8_t *values, const float *scales, Blocks blocks, int64_t first,
                         int64_t last, float *weight) {
    fp8_rows(values, scales, blocks, first, last, weight);
}

HEIRLOOM_CLONES void fp8(const uint8_t *values, const float *scales, Blocks blocks, int64_t first,
                         int64_t last, c10::BFloat16 *weight) {
    fp8_rows(values, scales, blocks, first, last, weight);
}

// What is common to the functions below

template <typename F> void with_kind(const torch::Tensor &weight, F &&work) {
    TORCH_CHECK(weight.is_contiguous() && weight.is_cpu(), "a weight that is not laid out in rows");
    if (weight.scalar_type() == torch::kFloat) {
        work(weight.data_ptr<float>());
    } else if (weight.scalar_type() == torch::kBFloat16) {
        work(weight.data_ptr<c10::BFloat16>());
    } else {
        TORCH_CHECK(false, "a weight cannot be unpacked to ", weight.scalar_type());
    }
}

void expect(const torch::Tensor &tensor, torch::ScalarType type, int64_t numel) {
    TORCH_CHECK(tensor.is_cpu() && tensor.is_contiguous() && tensor.scalar_type() == type &&
                    tensor.numel() == numel,
                numel, " numbers of type ", type, " were expected in a row, not ",
                tensor.numel(), " of ", tensor.scalar_type());
}

int64_t ceil_div(int64_t number, int64_t by) { return (number + by - 1) / by; }

// Rows that are worth a thread of their own.
int64_t rows_of_grain(int64_t columns) { return std::max<int64_t>(1, GRAIN / std::max<int64_t>(columns, 1)); }

} // namespace

extern "C" {

// Packs `weight` into `packed` and `absmax`, both made by the caller.
char *heirloom_nf4_pack(const torch::Tensor *weight, torch::Tensor *packed,
                        torch::Tensor *absmax) {
    return heirloom_guarded([&] {
        int64_t numel = weight->numel(), blocks = ceil_div(numel, BLOCK);
        expect(*packed, torch::kUInt8, ceil_div(numel, 2));
        expect(*absmax, torch::kFloat, blocks);
        TORCH_CHECK(weight->is_cpu() && weight->is_contiguous(), "a weight that is not laid out in rows");
        auto work = [&](auto *from) {
            at::parallel_for(0, blocks, GRAIN / BLOCK, [&](int64_t first, int64_t last) {
                pack(from, numel, first, last, packed->data_ptr<uint8_t>(), absmax->data_ptr<float>());
            });
        };
        switch (weight->scalar_type()) {
        case torch::kFloat: return work(weight->const_data_ptr<float>());
        case torch::kBFloat16: return work(weight->const_data_ptr<c10::BFloat16>());
        case torch::kHalf: return work(weight->const_data_ptr<c10::Half>());
        default: TORCH_CHECK(false, "a weight of ", weight->scalar_type(), " cannot be packed");
        }
    });
}

// The functions below fill `weight`, made by the caller in float32 or bfloat16.

char *heirloom_nf4_unpack(const torch::Tensor *packed, const torch::Tensor *absmax,
                          torch::Tensor *weight) {
    return heirloom_guarded([&] {
        int64_t numel = weight->numel(), blocks = ceil_div(numel, BLOCK);
        expect(*packed, torch::kUInt8, ceil_div(numel, 2));
        expect(*absmax, torch::kFloat, blocks);
        with_kind(*weight, [&](auto *to) {
            at::parallel_for(0, blocks, GRAIN / BLOCK, [&](int64_t first, int64_t last) {
                unpack(packed->const_data_ptr<uint8_t>(), absmax->const_data_ptr<float>(), numel,
                       first, last, to);
            });
        });
    });
}

char *heirloom_int8_unpack(const torch::Tensor *values, const torch::Tensor *absmax,
                           torch::Tensor *weight) {
    return heirloom_guarded([&] {
        int64_t rows = weight->size(0), columns = weight->size(1);
        expect(*values, torch::kChar, rows * columns);
        expect(*absmax, torch::kFloat, rows);
        with_kind(*weight, [&](auto *to) {
            at::parallel_for(0, rows, rows_of_grain(columns), [&](int64_t first, int64_t last) {
                int8(values->const_data_ptr<int8_t>(), absmax->const_data_ptr<float>(), columns,
                     first, last, to);
            });
        });
    });
}

char *heirloom_fp8_unpack(const torch::Tensor *values, const torch::Tensor *scales,
                          int64_t block_rows, int64_t block_columns, torch::Tensor *weight) {
    return heirloom_guarded([&] {
        int64_t rows = weight->size(0), columns = weight->size(1);
        TORCH_CHECK(block_rows > 0 && block_columns > 0, "blocks without rows or columns");
        int64_t across = ceil_div(columns, block_columns);
        expect(*values, torch::kFloat8_e4m3fn, rows * columns);
        expect(*scales, torch::kFloat, ceil_div(rows, block_rows) * across);
        Blocks blocks{columns, block_rows, block_columns, across};
        const auto *from = static_cast<const uint8_t *>(values->const_data_ptr());
        with_kind(*weight, [&](auto *to) {
            at::parallel_for(0, rows, rows_of_grain(columns), [&](int64_t first, int64_t last) {
                fp8(from, scales->const_data_ptr<float>(), blocks, first, last, to);
            });
        });
    });
}
}
