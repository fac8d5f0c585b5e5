// Switching stacks: the few instructions below, the annotations that AddressSanitizer wants, and a pool of stacks.
#pragma once

#include <cstddef>

namespace cuda_shim {

struct Fiber {
  void* stack_pointer = nullptr;
  void* fake_stack = nullptr;          // AddressSanitizer's, while the fiber does not run
  const char* stack_bottom = nullptr;  // lowest address
  size_t stack_bytes = 0;
};

// Leaves `from` (saved there) and goes on in `to`. With `ends`, `from` never runs again.
void switch_fiber(Fiber& from, Fiber& to, bool ends = false);
// To be called first on a fresh fiber. `from`, unless null, is the one it came from, and learns where its own stack
// lies.
void arrive_on_fiber(Fiber* from);

// A fiber that will run `entry` on stack number `index` of this OS thread's pool. Whatever ran on that stack before is
// forgotten.
void prepare_fiber(Fiber& fiber, int index, void (*entry)());

}  // namespace cuda_shim
