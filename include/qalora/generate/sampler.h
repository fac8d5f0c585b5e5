// Choosing the next token from logits.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace qalora::generate {

struct SamplerOptions {
  double temperature = 0;  // 0: the most likely token
  double top_p = 1;        // of (0, 1]: only the likeliest tokens that together reach this probability
  int64_t top_k = 0;       // only the k likeliest; 0: all
  uint64_t seed = 0;
};

// UserError for a temperature below 0, a top_p outside (0, 1], a negative top_k.
void check_sampler(const SamplerOptions& options);

// logits: [vocab] f32. A function of its arguments: the random number is that of (seed, step). Of equal logits the
// lower id comes first. DataError when one is NaN or +infinity.
int64_t sample(const at::Tensor& logits, const SamplerOptions& options, uint64_t step);

}  // namespace qalora::generate
