// The learning rate of each step.
#pragma once

#include <cstdint>
#include <string>

namespace qalora::train {

// Rate of optimizer step `step` (0 first): warm-up rises linearly from 0 over warmup_steps, then "constant" stays at
// peak, "linear" falls to 0 at `steps`, "cosine" follows half a cosine to 0 at `steps`. Past the end: the last value.
// Differs from Hugging Face's plain `constant` in honouring warmup_steps, which that one silently ignores.
double learning_rate_at(const std::string& schedule, double peak, int64_t warmup_steps, int64_t steps, int64_t step);

}  // namespace qalora::train
