#include "group_grid.h"

#include <algorithm>
#include <cmath>

namespace qalora::quant {
namespace {

// The grid over [low, high]. Integer zeros: low and high enclose 0, and a code stands for 0 exactly (as in GPTQ's own
// quantiser, where a group of nothing but zeros spans [-1, 1]).
Grid grid_over(float low, float high, const GridRule& rule) {
  const float top = static_cast<float>(rule.top());
  if (!rule.integer_zeros) return {(high - low) / top, low};
  if (low == 0 && high == 0) low = -1, high = 1;
  const float scale = (high - low) / top;
  if (!(scale > 0)) return {0, 0};  // a range below the smallest fp32 number
  return {scale, -(scale * std::nearbyint(-low / scale))};
}

// Sum of importance * (value - rounded)^2. Eight running sums, so that the loop can use vectors.
float rounding_cost(const Grid& grid, int top, const float* values, const float* importance, int64_t count) {
  constexpr int kLanes = 8;
  float sums[kLanes] = {};
  const float inverse = inverse_scale(grid.scale);
  const auto cost = [&](int64_t i) {
    const float difference = values[i] - value_of(grid, nearest_code(values[i], grid.offset, inverse, top));
    return importance[i] * difference * difference;
  };
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) sums[lane] += cost(i + lane);
  }
  float sum = 0;
  for (const float part : sums) sum += part;
  for (; i < count; ++i) sum += cost(i);
  return sum;
}

// The line through (code, value) of what the grid rounds to, by least squares: a grid whose cost with the same codes is
// the least. A grid without two codes in use stays as it is.
Grid through_codes(const Grid& grid, int top, const float* values, const float* importance, int64_t count) {
  const float inverse = inverse_scale(grid.scale);
  double weight = 0, code_mean = 0, value_mean = 0;
  for (int64_t i = 0; i < count; ++i) {
    weight += importance[i];
    code_mean += static_cast<double>(importance[i]) * nearest_code(values[i], grid.offset, inverse, top);
    value_mean += static_cast<double>(importance[i]) * values[i];
  }
  if (!(weight > 0)) return grid;
  code_mean /= weight, value_mean /= weight;
  double variance = 0, covariance = 0;
  for (int64_t i = 0; i < count; ++i) {
    const double code = nearest_code(values[i], grid.offset, inverse, top) - code_mean;
    variance += importance[i] * code * code;
    covariance += importance[i] * code * (values[i] - value_mean);
  }
  if (!(variance > 0 && covariance > 0)) return grid;
  const double scale = covariance / variance;
  return {static_cast<float>(scale), static_cast<float>(value_mean - scale * code_mean)};
}

}  // namespace

Grid fit_grid(const GridRule& rule, const float* values, const float* importance, int64_t count) {
  auto [least, most] = std::minmax_element(values, values + count);
  float low = *least, high = *most;
  if (rule.integer_zeros) low = std::min(low, 0.0F), high = std::max(high, 0.0F);
  Grid best = grid_over(low, high, rule);
  if (rule.search == ScaleSearch::kMinMax) return best;
  // Both ends move towards the middle (towards zero where zero is on the grid): 1, 0.95 .. 0.25 of the range. Fewer
  // bits clip more.
  constexpr float kStep = 0.05F;
  constexpr int kSteps = 15;
  const float centre = rule.integer_zeros ? 0.0F : low + (high - low) / 2;
  float least_cost = rounding_cost(best, rule.top(), values, importance, count);
  for (int step = 1; step <= kSteps; ++step) {
    const float share = 1 - kStep * static_cast<float>(step);
    const Grid grid = grid_over(centre + (low - centre) * share, centre + (high - centre) * share, rule);
    const float cost = rounding_cost(grid, rule.top(), values, importance, count);
    if (cost < least_cost) least_cost = cost, best = grid;
  }
  // From there in turns: scale and offset for the codes, codes for scale and offset. A free offset only; few turns get
  // nearly all of it.
  constexpr int kTurns = 4;
  for (int turn = 0; turn < kTurns && !rule.integer_zeros; ++turn) {
    const Grid grid = through_codes(best, rule.top(), values, importance, count);
    const float cost = rounding_cost(grid, rule.top(), values, importance, count);
    if (!(cost < least_cost)) break;
    least_cost = cost, best = grid;
  }
  return best;
}

}  // namespace qalora::quant
