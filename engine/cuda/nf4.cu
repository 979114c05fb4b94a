// NF4 unpacked: eight values a thread at once, their four bytes read by one instruction.
//
// Gives the bits of engine/shim/quant.cpp and of engine/src/quant/nf4.rs: products that are
// rounded on their own, never fused with what follows.

struct Nf4 {
    i64 count; // values
    const u8 *packed;
    const float *absmax; // of every block of 64, or null where these are quantised in turn:
    const u8 *codes;     // table[code] · scale + offset
    const float *scales; // of every block of 256 codes
    const float *offset; // one
    const float *table;  // [256]
    void *weight;
};

constexpr int BLOCK = 64, CODES_BLOCK = 256;

__device__ inline float scale_of(const Nf4 &job, i64 block) {
    if (job.absmax) {
        return job.absmax[block];
    }
    return __fadd_rn(__fmul_rn(job.table[job.codes[block]], job.scales[block / CODES_BLOCK]), *job.offset);
}

template <typename T> __device__ void unpack(const Nf4 &job) {
    __shared__ float code[16];
    const float values[16] = {
        -1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f,
        -0.28444138169288635f, -0.18477343022823334f, -0.09105003625154495f, 0.0f,
        0.07958029955625534f, 0.16093020141124725f, 0.24611230194568634f, 0.33791524171829224f,
        0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f};
    // By constant numbers, so that the values need no memory of a thread's own.
    for (int i = 0; i < 16; i++) {
        if (threadIdx.x == i) {
            code[i] = values[i];
        }
    }
    __syncthreads();
    const bool in_packs = aligned(16, job.packed, job.weight);
    const i64 full = in_packs ? job.count / 8 : 0, stride = i64(gridDim.x) * blockDim.x;
    const i64 first = i64(blockIdx.x) * blockDim.x + threadIdx.x;
    for (i64 i = first; i < full; i += stride) {
        const u32 bytes = reinterpret_cast<const u32 *>(job.packed)[i];
        const float scale = scale_of(job, i * 8 / BLOCK);
        Pack<T, 8> out;
        for (int k = 0; k < 8; k++) {
            // The first of two values lies in the high half of a byte.
            store(__fmul_rn(code[bytes >> (4 * (k ^ 1)) & 15], scale), out.x[k]);
        }
        packs<T, 8>(job.weight, 0)[i] = out;
    }
    for (i64 i = full * 8 + first; i < job.count; i += stride) {
        const u32 byte = job.packed[i / 2];
        const float value = code[i % 2 ? byte & 15 : byte >> 4];
        store(__fmul_rn(value, scale_of(job, i / BLOCK)), static_cast<T *>(job.weight)[i]);
    }
}

extern "C" {
__global__ void nf4_f32(const Nf4 job) { unpack<float>(job); }
__global__ void nf4_bf16(const Nf4 job) { unpack<bfloat16>(job); }
__global__ void nf4_f16(const Nf4 job) { unpack<float16>(job); }
}
