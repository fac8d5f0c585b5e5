// Rotary position embedding (Su et al., arXiv:2104.09864) in Hugging Face's half-split form, with its scaled variants.
#pragma once

#include <ATen/core/Tensor.h>

#include "qalora/model/config.h"

namespace qalora::model {

class Rope {
 public:
  Rope() = default;
  // Tables for positions 0 .. length-1, from inverse frequencies in double. `length` also decides the base of the
  // dynamic kind, which depends on how long the sequence is. device: where the tables lie.
  Rope(const LlamaConfig& config, int64_t length, c10::Device device = c10::kCPU);

  int64_t length() const { return length_; }
  // positions: [tokens] i64 -> cos, sin: [tokens, head_dim] f32
  std::pair<at::Tensor, at::Tensor> at(const at::Tensor& positions) const;
  // x: [tokens, heads, head_dim] -> same shape and dtype, rotated in f32.
  static at::Tensor apply(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin);

  // [head_dim / 2] in double, and the factor that multiplies cos and sin (yarn).
  static std::vector<double> inverse_frequencies(const LlamaConfig& config, int64_t length);
  static double attention_factor(const RopeConfig& config);

 private:
  int64_t length_ = 0;
  at::Tensor cos_, sin_;  // [length, head_dim] f32
};

}  // namespace qalora::model
