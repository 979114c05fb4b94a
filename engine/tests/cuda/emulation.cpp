// The kernels (engine/cuda), compiled for the processor, and what runs them.

#include "emulation.h"

#include <c10/util/Half.h>
#include <csetjmp>
#include <memory>
#include <mutex>
#include <ucontext.h>
#include <vector>

namespace {
#include "../../cuda/numbers.cuh"
namespace rms_norm {
#include "../../cuda/rms_norm.cu"
}
namespace rotary {
#include "../../cuda/rotary.cu"
}
namespace gated {
#include "../../cuda/gated.cu"
}
namespace adamw {
#include "../../cuda/adamw.cu"
}
namespace cross_entropy {
#include "../../cuda/cross_entropy.cu"
}
namespace nf4 {
#include "../../cuda/nf4.cu"
}
namespace bytes {
#include "../../cuda/bytes.cu"
}
namespace fp8_rows {
#include "../../cuda/fp8_rows.cu"
}

struct Kernel {
    const char *name;
    void (*run)(const void *job);
};

#define KERNEL(room, job, name) \
    {#name, [](const void *given) { room::name(*static_cast<const room::job *>(given)); }}

const Kernel KERNELS[] = {
    KERNEL(rms_norm, RmsNorm, rms_norm_f32),
    KERNEL(rms_norm, RmsNorm, rms_norm_bf16),
    KERNEL(rms_norm, RmsNorm, rms_norm_backward_f32),
    KERNEL(rms_norm, RmsNorm, rms_norm_backward_bf16),
    KERNEL(rms_norm, RmsNorm, rms_norm_weight_f32),
    KERNEL(rms_norm, RmsNorm, rms_norm_weight_bf16),
    KERNEL(rotary, Rotation, rotate_f32),
    KERNEL(rotary, Rotation, rotate_bf16),
    KERNEL(gated, Gated, gated_f32),
    KERNEL(gated, Gated, gated_bf16),
    KERNEL(gated, Gated, gated_backward_f32),
    KERNEL(gated, Gated, gated_backward_bf16),
    KERNEL(adamw, AdamW, adamw_f32),
    KERNEL(cross_entropy, CrossEntropy, cross_entropy_f32),
    KERNEL(cross_entropy, CrossEntropy, cross_entropy_bf16),
    KERNEL(nf4, Nf4, nf4_f32),
    KERNEL(nf4, Nf4, nf4_bf16),
    KERNEL(nf4, Nf4, nf4_f16),
    KERNEL(bytes, Bytes, int8_f32),
    KERNEL(bytes, Bytes, int8_bf16),
    KERNEL(bytes, Bytes, int8_f16),
    KERNEL(bytes, Bytes, e4m3_f32),
    KERNEL(bytes, Bytes, e4m3_bf16),
    KERNEL(bytes, Bytes, e4m3_f16),
    KERNEL(fp8_rows, Fp8Rows, fp8_rows_f32),
    KERNEL(fp8_rows, Fp8Rows, fp8_rows_bf16),
};

constexpr unsigned MOST_THREADS = 1024, LANES = 32;
constexpr size_t STACK = 1 << 16;

enum class Waits { NoMore, ForWarp, ForBlock };

// A thread of a block. Its fiber is made once, and runs the next block when the last is done.
struct Fiber {
    std::unique_ptr<char[]> stack;
    ucontext_t start;
    jmp_buf inside;
    Waits waits = Waits::NoMore;
    uint64_t brought = 0;
};

Fiber fibers[MOST_THREADS];
jmp_buf scheduler;
ucontext_t unused;
void (*body)(const void *);
const void *argument;

// Hands over to the scheduler until what this thread waits for has come.
void wait(Waits what) {
    Fiber &own = fibers[threadIdx.x];
    own.waits = what;
    if (!_setjmp(own.inside)) {
        _longjmp(scheduler, 1);
    }
}

void live() {
    for (;;) {
        body(argument);
        wait(Waits::NoMore);
    }
}

void resume(unsigned thread) {
    Fiber &fiber = fibers[thread];
    threadIdx.x = thread;
    if (_setjmp(scheduler)) {
        return;
    }
    if (fiber.stack) {
        _longjmp(fiber.inside, 1);
    }
    fiber.stack.reset(new char[STACK]);
    getcontext(&fiber.start);
    fiber.start.uc_stack.ss_sp = fiber.stack.get();
    fiber.start.uc_stack.ss_size = STACK;
    fiber.start.uc_link = nullptr;
    makecontext(&fiber.start, live, 0);
    swapcontext(&unused, &fiber.start);
}

bool all(unsigned from, unsigned to, Waits what) {
    for (unsigned thread = from; thread < to; thread++) {
        if (fibers[thread].waits != what) {
            return false;
        }
    }
    return true;
}

// Every thread as far as it comes; false where some wait for what does not come.
bool run_block(unsigned threads, bool backwards) {
    std::vector<char> ready(threads, 1);
    for (;;) {
        for (unsigned i = 0; i < threads; i++) {
            const unsigned thread = backwards ? threads - 1 - i : i;
            if (ready[thread]) {
                ready[thread] = 0;
                resume(thread);
            }
        }
        bool any = false;
        for (unsigned warp = 0; warp < threads; warp += LANES) {
            if (all(warp, warp + LANES, Waits::ForWarp)) {
                memset(&ready[warp], 1, LANES);
                any = true;
            }
        }
        if (all(0, threads, Waits::ForBlock)) {
            memset(&ready[0], 1, threads);
            any = true;
        }
        if (!any) {
            return all(0, threads, Waits::NoMore);
        }
    }
}

} // namespace

Place threadIdx, blockIdx, blockDim, gridDim;

void __syncthreads() { wait(Waits::ForBlock); }

uint64_t emulated_exchange(uint64_t mine, unsigned lane) {
    fibers[threadIdx.x].brought = mine;
    wait(Waits::ForWarp);
    const uint64_t theirs = fibers[threadIdx.x / LANES * LANES + lane].brought;
    // Nobody brings anything else before all have read.
    wait(Waits::ForWarp);
    return theirs;
}

uint16_t emulated_float16(float x) { return c10::detail::fp16_ieee_from_fp32_value(x); }

// Runs a kernel to its end; gives null, or what is wrong.
extern "C" const char *heirloom_emulate(const char *name, unsigned blocks, unsigned threads, const void *job) {
    static std::mutex one;
    std::lock_guard<std::mutex> guard(one);
    if (blocks == 0 || threads == 0 || threads % LANES != 0 || threads > MOST_THREADS) {
        return "a grid that cannot be launched";
    }
    body = nullptr;
    for (const Kernel &kernel : KERNELS) {
        if (strcmp(kernel.name, name) == 0) {
            body = kernel.run;
        }
    }
    if (!body) {
        return "no kernel of this name";
    }
    argument = job;
    blockDim.x = threads;
    gridDim.x = blocks;
    for (unsigned block = 0; block < blocks; block++) {
        blockIdx.x = block;
        if (!run_block(threads, block % 2 == 1)) {
            return "threads that wait for others which do not come";
        }
    }
    return nullptr;
}
