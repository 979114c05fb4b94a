// Memory of tensors on the CPU: every large one is a mapping of its own. Rust's side, and why:
// engine/src/memory.rs.
//
// Reference: libtorch's own allocator (c10/core/CPUAllocator.cpp).

#include "shim.h"

#include <c10/core/CPUAllocator.h>
#include <c10/util/Exception.h>
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <mutex>
#include <sys/mman.h>
#include <unordered_map>

namespace {

constexpr size_t PAGE = 4096;
// Smaller tensors are the C library's: together they are little.
constexpr size_t LARGE = 64 << 10;
// What vector instructions want, as libtorch's own allocator has it.
constexpr size_t ALIGNMENT = 64;

struct Usage {
    uint64_t live, peak, held;
};

// Free blocks are kept, whose pages need not be cleared and mapped again; but before a page is
// asked for, free ones are given back. So what is held is never more than was needed at once.
class Blocks final : public c10::Allocator {
public:
    c10::DataPtr allocate(size_t bytes) override {
        void *start = nullptr;
        if (bytes >= LARGE) {
            start = take((bytes + PAGE - 1) / PAGE * PAGE);
        } else if (bytes > 0 && posix_memalign(&start, ALIGNMENT, bytes) != 0) {
            start = nullptr;
        }
        TORCH_CHECK(start || bytes == 0, "not enough memory for a tensor of ", bytes, " bytes");
        return {start, start, &forget, c10::Device(c10::DeviceType::CPU)};
    }

    c10::DeleterFnPtr raw_deleter() const override { return &forget; }

    void copy_data(void *to, const void *from, size_t bytes) const override {
        default_copy_data(to, from, bytes);
    }

    Usage usage() {
        std::lock_guard<std::mutex> guard(lock);
        return {live, peak, live + idle};
    }

    void give_back() {
        std::lock_guard<std::mutex> guard(lock);
        release(idle);
    }

    static Blocks &only() {
        // Never destroyed: tensors may outlive every static.
        static Blocks &blocks = *new Blocks;
        return blocks;
    }

private:
    static void forget(void *start) { only().give(start); }

    void *take(size_t size) {
        std::lock_guard<std::mutex> guard(lock);
        void *start = found(size);
        if (start) {
            sizes[start] = size;
            live += size;
            peak = std::max(peak, live);
        }
        return start;
    }

    void *found(size_t size) {
        auto block = free_blocks.lower_bound(size);
        if (block != free_blocks.end()) {
            char *start = static_cast<char *>(block->second);
            const size_t rest = block->first - size;
            free_blocks.erase(block);
            idle -= size + rest;
            if (rest > 0) {
                keep(start + size, rest);
            }
            return start;
        }
        if (free_blocks.empty()) {
            return mapped(mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
        }
        // The largest of those that are too small grows by what others give back.
        block = std::prev(free_blocks.end());
        auto [had, start] = *block;
        free_blocks.erase(block);
        idle -= had;
        release(size - had);
        void *grown = mapped(mremap(start, had, size, MREMAP_MAYMOVE));
        if (!grown) {
            keep(start, had);
        }
        return grown;
    }

    static void *mapped(void *start) { return start == MAP_FAILED ? nullptr : start; }

    void keep(void *start, size_t size) {
        free_blocks.emplace(size, start);
        idle += size;
    }

    // Gives back so many bytes of free blocks, or all there are.
    void release(size_t wanted) {
        while (wanted > 0 && !free_blocks.empty()) {
            auto block = free_blocks.lower_bound(wanted);
            block = block == free_blocks.end() ? std::prev(block) : block;
            auto [size, start] = *block;
            free_blocks.erase(block);
            idle -= size;
            const size_t given = std::min(size, wanted);
            munmap(static_cast<char *>(start) + (size - given), given);
            if (size > given) {
                keep(start, size - given);
            }
            wanted -= given;
        }
    }

    void give(void *start) {
        {
            std::lock_guard<std::mutex> guard(lock);
            const auto block = sizes.find(start);
            if (block != sizes.end()) {
                live -= block->second;
                keep(start, block->second);
                sizes.erase(block);
                return;
            }
        }
        free(start);
    }

    std::mutex lock;
    std::multimap<size_t, void *> free_blocks; // by size
    std::unordered_map<void *, size_t> sizes;  // of blocks in use
    uint64_t live = 0, idle = 0, peak = 0;
};

} // namespace

extern "C" {

// From here on tensors on the CPU lie in blocks.
void heirloom_memory_of_blocks() { c10::SetCPUAllocator(&Blocks::only()); }

// Bytes of blocks in use now and at most, and what is held of the system.
void heirloom_memory_usage(Usage *usage) { *usage = Blocks::only().usage(); }

// Gives back what is held and not in use.
void heirloom_memory_give_back() { Blocks::only().give_back(); }
}
