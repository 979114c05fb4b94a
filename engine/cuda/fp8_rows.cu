// Rows quantised to e4m3 with a scale for each, to be multiplied in fp8: a block for each row.
//
// Gives the bits of the tensor calls in engine/src/quant/scaled.rs.

struct Fp8Rows {
    i64 rows, width, stride;
    float least;  // no row is divided by less
    const void *x;
    u8 *values;   // [rows, width]
    float *scales; // [rows], what values are multiplied with
};

constexpr float LARGEST_E4M3 = 448.0f;

// To the nearest, halves to even. Below 2^-6 numbers lie evenly, 2^-9 apart, as f32's do at 2^14.
__device__ inline u8 to_e4m3(float x) {
    const u32 bits = __float_as_uint(x), sign = bits >> 24 & 0x80;
    u32 size = bits & 0x7fffffff;
    if (size > 0x7f800000) {
        return u8(sign | 0x7f);
    }
    if (size < 0x3c800000) {
        return u8(sign | (__float_as_uint(__fadd_rn(__uint_as_float(size), 0x1p14f)) - __float_as_uint(0x1p14f)));
    }
    size += 0x7ffff + (size >> 20 & 1);
    return u8(sign | ((size >> 20) - (120 << 3)));
}

template <typename T, int N> __device__ void quantize(const Fp8Rows &job) {
    const i64 row = blockIdx.x, count = job.width / N;
    const Pack<T, N> *x = packs<T, N>(job.x, row * job.stride);
    float largest = job.least;
    for (i64 i = threadIdx.x; i < count; i += blockDim.x) {
        const Pack<T, N> here = x[i];
        for (int k = 0; k < N; k++) {
            largest = Largest::of(largest, fabsf(load(here.x[k])));
        }
    }
    const float factor = __fmul_rn(1.0f / over_block<Largest>(largest), LARGEST_E4M3);
    if (threadIdx.x == 0) {
        job.scales[row] = 1.0f / factor;
    }
    Pack<u8, N> *values = packs<u8, N>(static_cast<void *>(job.values), row * job.width);
    for (i64 i = threadIdx.x; i < count; i += blockDim.x) {
        const Pack<T, N> here = x[i];
        Pack<u8, N> out;
        for (int k = 0; k < N; k++) {
            const float scaled = __fmul_rn(load(here.x[k]), factor);
            const float above = scaled < -LARGEST_E4M3 ? -LARGEST_E4M3 : scaled;
            out.x[k] = to_e4m3(above > LARGEST_E4M3 ? LARGEST_E4M3 : above);
        }
        values[i] = out;
    }
}

template <typename T> __device__ void quantize_of(const Fp8Rows &job) {
    const bool in_packs = multiples(FULL<T>, job.width, job.stride) && aligned(16, job.x, job.values);
    in_packs ? quantize<T, FULL<T>>(job) : quantize<T, 1>(job);
}

extern "C" {
__global__ void fp8_rows_f32(const Fp8Rows job) { quantize_of<float>(job); }
__global__ void fp8_rows_bf16(const Fp8Rows job) { quantize_of<bfloat16>(job); }
}
