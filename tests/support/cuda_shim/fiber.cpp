#include "fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <vector>

#ifndef __x86_64__
#error "the shim switches stacks with x86-64 instructions"
#endif

// There when the program is linked with AddressSanitizer; this file itself is compiled without.
extern "C" {
__attribute__((weak)) void __sanitizer_start_switch_fiber(void** fake_stack, const void* bottom, size_t bytes);
__attribute__((weak)) void __sanitizer_finish_switch_fiber(void* fake_stack, const void** old_bottom,
                                                           size_t* old_bytes);
__attribute__((weak)) void __asan_unpoison_memory_region(const volatile void* address, size_t bytes);
void cuda_shim_switch(void** save, void* load);
}

// What a function must preserve (System V ABI) goes onto the old stack and comes from the new one.
asm(R"(
.text
.align 16
.globl cuda_shim_switch
.type cuda_shim_switch, @function
cuda_shim_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size cuda_shim_switch, .-cuda_shim_switch
)");

namespace cuda_shim {
namespace {

constexpr size_t kPage = 4096;
constexpr size_t kStackBytes =
    256 * 1024;  // address space; a page is real once touched. AddressSanitizer's reports need some room

// Stacks with a page below them that nothing may touch, kept until the OS thread ends.
struct StackPool {
  std::vector<char*> stacks;
  ~StackPool() {
    for (char* stack : stacks) munmap(stack - kPage, kStackBytes + kPage);
  }
  char* get(int index) {
    while (static_cast<int>(stacks.size()) <= index) {
      void* memory = mmap(nullptr, kStackBytes + kPage, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (memory == MAP_FAILED || mprotect(memory, kPage, PROT_NONE) != 0) abort();
      stacks.push_back(static_cast<char*>(memory) + kPage);
    }
    return stacks[index];
  }
};
thread_local StackPool pool;

}  // namespace

void switch_fiber(Fiber& from, Fiber& to, bool ends) {
  if (__sanitizer_start_switch_fiber)
    __sanitizer_start_switch_fiber(ends ? nullptr : &from.fake_stack, to.stack_bottom, to.stack_bytes);
  cuda_shim_switch(&from.stack_pointer, to.stack_pointer);
  if (__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
}

void arrive_on_fiber(Fiber* from) {
  const void* bottom = nullptr;
  size_t bytes = 0;
  if (__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(nullptr, &bottom, &bytes);
  if (from == nullptr) return;
  from->stack_bottom = static_cast<const char*>(bottom);
  from->stack_bytes = bytes;
}

void prepare_fiber(Fiber& fiber, int index, void (*entry)()) {
  char* bottom = pool.get(index);
  if (__asan_unpoison_memory_region) __asan_unpoison_memory_region(bottom, kStackBytes);
  fiber.stack_bottom = bottom;
  fiber.stack_bytes = kStackBytes;
  fiber.fake_stack = nullptr;
  // The tops start at different places of a page: otherwise all threads' hottest lines fall into the same few sets of
  // the cache.
  auto* top = reinterpret_cast<uintptr_t*>(bottom + kStackBytes - static_cast<size_t>(index % 32) * 128);
  *--top = 0;  // `entry` has no caller; its return address, which leaves the stack as a call would: 8 modulo 16
  *--top = reinterpret_cast<uintptr_t>(entry);
  for (int saved = 0; saved < 6; ++saved) *--top = 0;
  fiber.stack_pointer = top;
}

}  // namespace cuda_shim
