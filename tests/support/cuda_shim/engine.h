// What kernels need of the engine that runs a block's threads as fibers. Tests include settings.h for the rest.
#pragma once

#include <cstdint>

#include "words.h"

namespace cuda_shim {

constexpr int kLanes = 32;

// An error of the kernel or of its launch. Inside a kernel the whole grid ends; the launch throws Fault.
[[noreturn]] void fault(const char* format, ...) __attribute__((format(printf, 1, 2)));

struct Launch {
  const void* kernel = nullptr;
  dim3 grid, block;
  int64_t shared_bytes = 0;
};
// Runs the blocks one after the other, each thread as body(arguments).
void run_grid(const Launch& launch, void (*body)(const void*), const void* arguments);

// The running thread's block; a kernel's own dynamic shared memory.
char* shared_memory();
// Faults unless [address, address + bytes) is aligned to `bytes` and lies in the block's shared memory.
void check_shared(const char* operation, const void* address, int64_t bytes);

// Waits for all threads of the block that have not ended, and returns in how many of them `predicate` held.
int block_barrier(const char* operation, bool predicate);

// Waits for the lanes of `mask`; the last one to arrive runs execute(mask, operands) for all of them: operands[lane] is
// what that lane passed (null outside the mask). Lanes that meet with one mask must pass the same `execute`.
using WarpExecute = void (*)(unsigned mask, void* const* operands);
void meet_warp(const char* operation, unsigned mask, void* operand, WarpExecute execute);
int lane();

// cp.async: 16 bytes, or zeros. When they land is the engine's choice between now and the wait that asks for them.
void async_copy16(void* shared, const void* global, bool valid);
void async_commit();
void async_wait(int pending_groups);

}  // namespace cuda_shim
