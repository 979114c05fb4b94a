// int8 and e4m3 weights unpacked: a block for each row, eight values a thread at once.
//
// Gives the bits of engine/shim/quant.cpp and of engine/src/quant/{int8,fp8}.rs.

struct Bytes {
    i64 rows, columns;
    i64 rows_each, columns_each; // of a block that shares a scale
    i64 across;                  // blocks side by side
    const void *values;
    const float *scales; // [blocks of rows, across]
    void *weight;
};

struct Int8 {
    // The number nearest to 1 / 127 that bitsandbytes multiplies with.
    static __device__ inline float times(u8 byte, float scale) {
        const float value = float(static_cast<signed char>(byte));
        return __fmul_rn(__fmul_rn(value, scale), 7.874015718698502e-3f);
    }
};

struct E4m3 {
    // A sign, four bits of exponent (bias 7) and three of mantissa; all ones is no number.
    // Read as f32's their exponent is 120 too small, that of subnormal ones, too.
    static __device__ inline float times(u8 byte, float scale) {
        const u32 size = byte & 0x7f, sign = u32(byte & 0x80) << 24;
        const float value = __uint_as_float(size << 20 | sign) * 0x1p120f;
        return __fmul_rn(size == 0x7f ? __uint_as_float(0x7fc00000 | sign) : value, scale);
    }
};

template <typename T, typename Format, int N> __device__ void unpack(const Bytes &job) {
    const i64 row = blockIdx.x;
    const float *scales = job.scales + row / job.rows_each * job.across;
    const Pack<u8, N> *values = packs<u8, N>(job.values, row * job.columns);
    Pack<T, N> *weight = packs<T, N>(job.weight, row * job.columns);
    for (int i = threadIdx.x; i < job.columns / N; i += blockDim.x) {
        const Pack<u8, N> bytes = values[i];
        const float scale = scales[i * N / int(job.columns_each)];
        Pack<T, N> out;
        for (int k = 0; k < N; k++) {
            store(Format::times(bytes.x[k], scale), out.x[k]);
        }
        weight[i] = out;
    }
}

template <typename T, typename Format> __device__ void unpack_of(const Bytes &job) {
    // The values of a pack share a scale.
    const bool in_packs = multiples(8, job.columns) && job.columns_each % 8 == 0 &&
                          aligned(8, job.values) && aligned(32, job.weight);
    in_packs ? unpack<T, Format, 8>(job) : unpack<T, Format, 1>(job);
}

extern "C" {
__global__ void int8_f32(const Bytes job) { unpack_of<float, Int8>(job); }
__global__ void int8_bf16(const Bytes job) { unpack_of<bfloat16, Int8>(job); }
__global__ void int8_f16(const Bytes job) { unpack_of<float16, Int8>(job); }
__global__ void e4m3_f32(const Bytes job) { unpack_of<float, E4m3>(job); }
__global__ void e4m3_bf16(const Bytes job) { unpack_of<bfloat16, E4m3>(job); }
__global__ void e4m3_f16(const Bytes job) { unpack_of<float16, E4m3>(job); }
}
