// CUDA as libtorch has it: the stream that it computes on, and flash attention.
//
// Owns nothing of CUDA itself: all goes through libtorch's registry of devices and its
// dispatcher, which know CUDA once `libtorch_cuda.so` has been opened. Rust's side:
// engine/src/ops/cuda, engine/src/ops/attention/flash.rs.

#include "shim.h"

#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/torch.h>

#include <cstdlib>

extern "C" {

// The stream of a device that this thread's calls of libtorch go to, as the driver names it.
char *heirloom_cuda_stream(int32_t index, void **stream) {
    return heirloom_guarded([&] {
        const c10::impl::VirtualGuardImpl guard(c10::DeviceType::CUDA);
        const c10::Device device(c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(index));
        *stream = guard.getStreamNativeHandle(guard.getStream(device));
    });
}

// Most bytes given out at once on a device since they were last forgotten.
char *heirloom_cuda_memory(int32_t index, bool forget, int64_t *bytes) {
    return heirloom_guarded([&] {
        const auto device = static_cast<c10::DeviceIndex>(index);
        c10::DeviceAllocator *allocator = c10::getDeviceAllocator(c10::DeviceType::CUDA);
        *bytes = allocator->getDeviceStats(device).allocated_bytes[0].peak;
        if (forget) {
            allocator->emptyCache();
            allocator->resetPeakStats(device);
        }
    });
}

// From now on only operations that give the same bytes again; others throw. cuBLAS is told through
// the environment, which it reads when it is first asked for a product.
char *heirloom_deterministic() {
    return heirloom_guarded([] {
        setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8", 0);
        at::globalContext().setDeterministicAlgorithms(true, false);
        // What is not written is not read: no need to fill it.
        at::globalContext().setDeterministicFillUninitializedMemory(false);
    });
}

// Causal attention within documents, of which `starts` (int32) has the first rows and the end.
// Gives, as new tensors: the output, the logarithms of the sums of exponentials, and the two
// that the backward pass takes back as they are. `window` < 0 is none.
char *heirloom_flash(const torch::Tensor *q, const torch::Tensor *k, const torch::Tensor *v,
                     const torch::Tensor *starts, int64_t longest, double scale, int64_t window,
                     torch::Tensor **results) {
    return heirloom_guarded([&] {
        std::optional<int64_t> left, right;
        if (window >= 0) {
            left = window, right = 0;
        }
        auto [output, lse, random, unused, mask] =
            at::_flash_attention_forward(*q, *k, *v, *starts, *starts, longest, longest, 0.0, true,
                                         false, scale, left, right);
        torch::Tensor found[] = {output, lse, random, unused};
        for (int i = 0; i < 4; i++) {
            results[i] = new torch::Tensor(std::move(found[i]));
        }
    });
}

// The gradients of q, k and v, as new tensors.
char *heirloom_flash_backward(const torch::Tensor *gradient, const torch::Tensor *q,
                              const torch::Tensor *k, const torch::Tensor *v,
                              torch::Tensor *const *kept, const torch::Tensor *starts,
                              int64_t longest, double scale, int64_t window,
                              torch::Tensor **results) {
    return heirloom_guarded([&] {
        std::optional<int64_t> left, right;
        if (window >= 0) {
            left = window, right = 0;
        }
        auto [of_q, of_k, of_v] = at::_flash_attention_backward(
            *gradient, *q, *k, *v, *kept[0], *kept[1], *starts, *starts, longest, longest, 0.0,
            true, *kept[2], *kept[3], scale, left, right);
        torch::Tensor found[] = {of_q, of_k, of_v};
        for (int i = 0; i < 3; i++) {
            results[i] = new torch::Tensor(std::move(found[i]));
        }
    });
}
}
