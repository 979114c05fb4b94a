// A graphics processor for tests: what the kernels (engine/cuda) say of CUDA, said in C++.
//
// Owns how a block runs: its threads are fibers of one thread, each running until it waits for
// the others. What it cannot show is timing, the rounding of the device's own exponentials, and
// races within a warp; for races across barriers every second block runs its threads in the
// other order.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#define __device__
#define __global__
// Blocks run one after another, so a function's own static variable is one block's.
#define __shared__ static

struct Place {
    unsigned x;
};

extern Place threadIdx, blockIdx, blockDim, gridDim;

// Waits for all threads of the block.
void __syncthreads();
// Waits for the warp; gives the bits that another lane brought.
uint64_t emulated_exchange(uint64_t mine, unsigned lane);

inline float __shfl_xor_sync(unsigned, float x, int other) {
    uint64_t mine = 0;
    memcpy(&mine, &x, sizeof(x));
    const uint64_t theirs = emulated_exchange(mine, (threadIdx.x % 32) ^ unsigned(other));
    memcpy(&x, &theirs, sizeof(x));
    return x;
}

inline float __uint_as_float(unsigned bits) {
    float x;
    memcpy(&x, &bits, sizeof(x));
    return x;
}
inline unsigned __float_as_uint(float x) {
    unsigned bits;
    memcpy(&bits, &x, sizeof(x));
    return bits;
}
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }

// f16 to the nearest, halves to even.
uint16_t emulated_float16(float x);
