// Random numbers that are a function of (seed, purpose, index): nothing to save, nothing to lose on a resume, and
// drawing more for one purpose never shifts another. Philox4x32-10 (Salmon et al., SC'11).
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string_view>
#include <vector>

namespace qalora::tensor {

// One block of the generator: four words that depend on counter and key only.
void philox4x32_10(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]);

class RandomStream {
 public:
  // purpose: a name such as "shuffle" or "dropout"; index: the step, epoch or layer it is for.
  RandomStream(uint64_t seed, std::string_view purpose, uint64_t index = 0);

  uint32_t next_u32();
  uint64_t next_u64();
  uint64_t below(uint64_t bound);  // uniform in [0, bound), without bias; bound > 0
  double uniform();                // [0, 1), 53 bits
  double normal();                 // mean 0, deviation 1 (Box-Muller)

  std::vector<int64_t> permutation(int64_t count);                            // of 0 .. count-1 (Fisher-Yates)
  at::Tensor uniform_tensor(at::IntArrayRef shape, double low, double high);  // f32
  at::Tensor normal_tensor(at::IntArrayRef shape, double deviation);          // f32
  // 1/(1-p) with probability 1-p, else 0. f32
  at::Tensor dropout_mask(at::IntArrayRef shape, double p);

 private:
  void refill();
  uint32_t key_[2];
  uint64_t counter_ = 0;
  uint64_t high_counter_;
  uint32_t block_[4];
  int used_ = 4;
  bool has_spare_ = false;
  double spare_ = 0;
};

}  // namespace qalora::tensor
