// What two stretches of numbers differ by: the innermost loops of every report, written so that a compiler makes vector
// code of them.
#pragma once

#include <cstdint>

namespace qalora::exporting {

// max |a[i] - b[i]|; NaN where one of the differences is.
float largest_difference(const float* a, const float* b, int64_t count);

// max |values[i]|; NaN where one of them is.
float largest_magnitude(const float* values, int64_t count);

// Takes the larger one; NaN is above all.
void raise(double& largest, double value);

struct Lost {
  int64_t subnormal = 0, flushed = 0, overflow = 0;
};

// What became of numbers that were rounded to a type with this smallest normal number and read back.
Lost count_lost(const float* before, const float* after, int64_t count, float smallest_normal);

}  // namespace qalora::exporting
