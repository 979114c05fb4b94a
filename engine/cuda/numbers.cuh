// What the kernels share: numbers as they are stored, packs of them, sums over a block.
//
// Rust puts this file in front of each operation's (engine/src/ops/cuda); nothing is included,
// so that NVRTC needs no headers. In tests all of it is compiled for the processor, too
// (engine/tests/cuda). Numbers are stored as f32 or bfloat16 and computed in f32, each
// result rounded once but where a family of models says otherwise, as on the CPU
// (engine/shim/elementwise.cpp).

using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;
using i64 = long long;

constexpr int WARP = 32;

struct bfloat16 {
    u16 bits;
};
struct float16 {
    u16 bits;
};

__device__ inline float load(float x) { return x; }
__device__ inline float load(bfloat16 x) { return __uint_as_float(u32(x.bits) << 16); }

__device__ inline void store(float x, float &place) { place = x; }

// To the nearest, halves to even; NaN stays NaN.
__device__ inline void store(float x, bfloat16 &place) {
#ifdef __CUDA_ARCH__
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(place.bits) : "f"(x));
#else
    const u32 bits = __float_as_uint(x);
    place.bits = u16(x != x ? 0x7fc0 : (bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
#endif
}

__device__ inline void store(float x, float16 &place) {
#ifdef __CUDA_ARCH__
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(place.bits) : "f"(x));
#else
    place.bits = emulated_float16(x);
#endif
}

template <typename T> __device__ inline float rounded(float x) {
    T stored;
    store(x, stored);
    return load(stored);
}

// Numbers that are loaded and stored by one instruction, or by few.
template <typename T, int N> struct alignas(sizeof(T) * N) Pack {
    T x[N];
};

// So many numbers fill 16 bytes, the most that one instruction moves.
template <typename T> constexpr int FULL = 16 / sizeof(T);

template <typename T, int N> __device__ inline const Pack<T, N> *packs(const void *start, i64 offset) {
    return reinterpret_cast<const Pack<T, N> *>(static_cast<const T *>(start) + offset);
}
template <typename T, int N> __device__ inline Pack<T, N> *packs(void *start, i64 offset) {
    return reinterpret_cast<Pack<T, N> *>(static_cast<T *>(start) + offset);
}

// Whether all of these addresses are multiples of so many bytes; null is.
template <typename... Pointers> __device__ inline bool aligned(int bytes, Pointers... pointers) {
    return ((reinterpret_cast<u64>(pointers) | ... | u64(0)) & u64(bytes - 1)) == 0;
}

// Whether all of these counts are multiples of another.
template <typename... Counts> __device__ inline bool multiples(int of, Counts... counts) {
    return ((u64(counts) | ... | u64(0)) & u64(of - 1)) == 0;
}

struct Sum {
    static __device__ inline float of(float a, float b) { return a + b; }
    static constexpr float NOTHING = 0.0f;
};

struct Largest {
    static __device__ inline float of(float a, float b) { return a < b ? b : a; }
    // The least number, not infinity: that minus itself is none.
    static constexpr float NOTHING = -3.402823466e38f;
};

// The sum, or the largest, over all threads of a block, in the same order every time. Blocks
// are whole warps.
template <typename Operation> __device__ inline float over_block(float x) {
    __shared__ float parts[WARP];
    for (int step = WARP / 2; step > 0; step /= 2) {
        x = Operation::of(x, __shfl_xor_sync(0xffffffffu, x, step));
    }
    // The parts of what was asked before have been read.
    __syncthreads();
    if (threadIdx.x % WARP == 0) {
        parts[threadIdx.x / WARP] = x;
    }
    __syncthreads();
    float all = Operation::NOTHING;
    for (u32 warp = 0; warp < blockDim.x / WARP; warp++) {
        all = Operation::of(all, parts[warp]);
    }
    return all;
}
