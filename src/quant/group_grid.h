// The grid of one group of one row: where its scale and offset come from, and which code is nearest.
#pragma once

#include <cstdint>

#include "qalora/quant/gptq.h"

namespace qalora::quant {

struct Grid {
  float scale = 0, offset = 0;
};

struct GridRule {
  int bits = 4;
  bool integer_zeros = false;
  ScaleSearch search = ScaleSearch::kMinMax;

  int top() const { return (1 << bits) - 1; }
};

// What rounding divides by; 0 for the grid of a constant group, whose every code is 0.
inline float inverse_scale(float scale) { return scale > 0 ? 1.0F / scale : 0.0F; }

// Never undefined, whatever the value: what is not above zero, NaN with it, is code 0.
inline int nearest_code(float value, float offset, float inverse, int top) {
  const float place = (value - offset) * inverse, limit = static_cast<float>(top);
  const float inside = place > 0 ? (place < limit ? place : limit) : 0.0F;
  return static_cast<int>(inside + 0.5F);
}

inline float value_of(const Grid& grid, int code) { return grid.scale * static_cast<float>(code) + grid.offset; }

// values: [count] f32; importance: [count] f32, not negative: what a squared error of each costs.
Grid fit_grid(const GridRule& rule, const float* values, const float* importance, int64_t count);

}  // namespace qalora::quant
