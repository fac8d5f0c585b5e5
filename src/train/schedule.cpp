#include "qalora/train/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "qalora/core/error.h"

namespace qalora::train {

double learning_rate_at(const std::string& schedule, double peak, int64_t warmup_steps, int64_t steps, int64_t step) {
  if (step < warmup_steps)
    return peak * (static_cast<double>(step) / static_cast<double>(std::max<int64_t>(1, warmup_steps)));
  if (schedule == "constant") return peak;
  const double span = static_cast<double>(std::max<int64_t>(1, steps - warmup_steps));
  if (schedule == "linear") return peak * std::max(0.0, static_cast<double>(steps - step) / span);
  QALORA_CHECK(schedule == "cosine", "schedule '", schedule, "'");
  const double done = std::min(1.0, static_cast<double>(step - warmup_steps) / span);
  return peak * std::max(0.0, 0.5 * (1.0 + std::cos(std::numbers::pi * done)));
}

}  // namespace qalora::train
