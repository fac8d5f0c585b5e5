// A block's threads as fibers, the block and warp barriers between them, and asynchronous copies.
#include "engine.h"

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "block.h"
#include "settings.h"

__thread uint3 threadIdx, blockIdx, blockDim, gridDim;

extern "C" __attribute__((weak)) void __sanitizer_symbolize_pc(void* address, const char* format, char* out,
                                                               size_t bytes);

namespace cuda_shim {
namespace {

__thread Block* block = nullptr;  // the one that runs on this OS thread

std::string text_of(uint3 index) {
  return "(" + std::to_string(index.x) + "," + std::to_string(index.y) + "," + std::to_string(index.z) + ")";
}

void check_limits(const Launch& launch) {
  const dim3 &grid = launch.grid, &threads = launch.block;
  if (grid.x < 1 || grid.y < 1 || grid.z < 1 || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535) {
    fault("%s: a grid of %s blocks cannot be launched", name_of_kernel(launch.kernel).c_str(), text_of(grid).c_str());
  }
  const uint64_t count = uint64_t{threads.x} * threads.y * threads.z;
  if (count < 1 || count > 1024 || threads.z > 64) {
    fault("%s: a block of %s threads cannot be launched", name_of_kernel(launch.kernel).c_str(),
          text_of(threads).c_str());
  }
  if (launch.shared_bytes < 0 || launch.shared_bytes > settings().max_shared_bytes) {
    fault("%s: %lld bytes of shared memory asked for, a block may have %lld", name_of_kernel(launch.kernel).c_str(),
          static_cast<long long>(launch.shared_bytes), static_cast<long long>(settings().max_shared_bytes));
  }
}

// Block `index` of the run in the order set: ascending, descending, or with a stride that has no divisor in common with
// the count.
uint64_t block_at(uint64_t index, uint64_t count) {
  if (settings().order == Order::kAscending) return index;
  if (settings().order == Order::kDescending) return count - 1 - index;
  constexpr uint64_t kStride = 0x9e3779b1;  // prime
  return count % kStride == 0 ? index : (index * (kStride % count) + settings().seed % count) % count;
}

}  // namespace

std::string name_of_kernel(const void* kernel) {
  char text[512] = "";
  // It takes the address for one that a call returns to and looks a byte before it.
  void* inside = const_cast<char*>(static_cast<const char*>(kernel) + 1);
  if (__sanitizer_symbolize_pc) __sanitizer_symbolize_pc(inside, "%f", text, sizeof(text));
  if (text[0]) return text;
  snprintf(text, sizeof(text), "kernel at %p", kernel);
  return text;
}

void fault(const char* format, ...) {
  char text[2048];
  va_list list;
  va_start(list, format);
  vsnprintf(text, sizeof(text), format, list);
  va_end(list);
  if (block == nullptr) throw Fault(text);
  block->stop(name_of_kernel(block->launch().kernel) + ": block " + text_of(blockIdx) + ", thread " +
              text_of(threadIdx) + ": " + text);
}

void run_grid(const Launch& launch, void (*body)(const void*), const void* arguments) {
  if (block != nullptr) throw Fault("a kernel is launched from within a kernel");
  check_limits(launch);
  if (settings().launches) settings().launches->push_back(launch);
  if (settings().record_only) return;
  blockDim = launch.block;
  gridDim = launch.grid;
  static thread_local Block reused;
  const uint64_t count = uint64_t{launch.grid.x} * launch.grid.y * launch.grid.z;
  for (uint64_t i = 0; i < count; ++i) {
    const uint64_t at = block_at(i, count);
    blockIdx = {static_cast<unsigned>(at % launch.grid.x), static_cast<unsigned>(at / launch.grid.x % launch.grid.y),
                static_cast<unsigned>(at / launch.grid.x / launch.grid.y)};
    block = &reused;
    reused.run(launch, body, arguments, settings().seed * 0x9e3779b97f4a7c15u + at);
    block = nullptr;
    if (!reused.problem().empty()) throw Fault(reused.problem());
  }
}

char* shared_memory() { return block->shared(); }

void check_shared(const char* operation, const void* address, int64_t bytes) {
  const auto at = reinterpret_cast<uintptr_t>(address), begin = reinterpret_cast<uintptr_t>(block->shared());
  if (at % static_cast<uintptr_t>(bytes)) {
    fault("%s: shared address at byte %lld is not aligned to %lld", operation, static_cast<long long>(at - begin),
          static_cast<long long>(bytes));
  }
  if (at < begin || at + static_cast<uintptr_t>(bytes) > begin + static_cast<uintptr_t>(block->launch().shared_bytes)) {
    fault("%s: byte %lld lies outside the block's %lld bytes of shared memory", operation,
          static_cast<long long>(at - begin), static_cast<long long>(block->launch().shared_bytes));
  }
}

int lane() { return block->running() % kLanes; }
int block_barrier(const char* operation, bool predicate) { return block->wait_for_block(operation, predicate); }
void meet_warp(const char* operation, unsigned mask, void* operand, WarpExecute execute) {
  block->meet_warp(operation, mask, operand, execute);
}
void async_copy16(void* shared, const void* global, bool valid) { block->copies().add(shared, global, valid); }
void async_commit() { block->copies().commit(); }
void async_wait(int pending_groups) { block->copies().wait(pending_groups); }

Settings& settings() {
  static thread_local Settings now;
  return now;
}

const char* name_of(Order order) {
  return order == Order::kAscending ? "ascending" : order == Order::kDescending ? "descending" : "shuffled";
}

}  // namespace cuda_shim
