// An accelerator for tests, in host memory: what runs above the kernels on `--device cuda` runs on it in every CI. It
// is stricter than a GPU wherever a GPU would be slow, wrong or undefined, so that what passes here has not mixed the
// two memories:
// - every operator that meets a CPU tensor beside its own throws, with the operator's name. Allowed are copies, and CPU
// tensors of no
//   dimensions where CUDA takes them. Index tensors on the CPU, which CUDA takes and copies behind our back, throw too;
// - its pointers are not addresses: the host that reads or writes through one dies of SIGSEGV, and its kernels refuse
// any other pointer; - fresh memory is filled with 0xFF: a NaN of every floating type;
// - recording a graph leaves no results behind, and replaying it runs what the device was asked to do, not the host's
// code again: a number
//   that the host computed stays what it was. What waits for the device throws while recording.
// Each operator is LibTorch's own CPU kernel on the same memory: no copies, and the CPU's bits.
#pragma once

#include <c10/core/Device.h>

#include <cstdint>

namespace qalora::test {

// Registers the device "fake:0" (DeviceType::PrivateUse1) and hands it to tensor::use_accelerator; the first call only.
c10::Device use_fake_accelerator();

// Allocations beyond it throw c10::OutOfMemoryError, as CUDA's allocator does. From the start: 64 GiB.
void set_fake_memory_limit(uint64_t bytes);
// Limits the device for one scope.
class FakeMemoryLimit {
 public:
  explicit FakeMemoryLimit(uint64_t bytes);
  ~FakeMemoryLimit();

 private:
  uint64_t before_;
};

struct FakeStatistics {
  // Of tensors' memory, each rounded up to 512; an operator's own scratch is not seen.
  uint64_t used_bytes = 0, peak_bytes = 0;
  uint64_t allocations = 0;
  uint64_t operators = 0;  // of LibTorch
  uint64_t kernels = 0;    // of our own table
  // Between the two memories. To the host: whatever a GPU would have to be waited for, item() and results of unknown
  // size (nonzero, an index by a mask) among it.
  uint64_t copies_to_device = 0, copies_to_host = 0, copied_bytes = 0;
};
FakeStatistics fake_statistics();
void reset_fake_statistics();  // the peak becomes what is used now, the counters zero

}  // namespace qalora::test
