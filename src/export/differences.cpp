#include "differences.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace qalora::exporting {
namespace {

// Magnitudes in the order of integers: inf above all that are finite, NaN above inf. A maximum of floats is no vector
// code to a compiler, because NaN is neither more nor less.
constexpr int32_t kInfinity = 0x7f800000;
int32_t magnitude(float value) { return std::bit_cast<int32_t>(value) & 0x7fffffff; }

}  // namespace

float largest_difference(const float* a, const float* b, int64_t count) {
  int32_t largest = 0;
  for (int64_t i = 0; i < count; ++i) largest = std::max(largest, magnitude(a[i] - b[i]));
  return std::bit_cast<float>(largest);
}

float largest_magnitude(const float* values, int64_t count) {
  int32_t largest = 0;
  for (int64_t i = 0; i < count; ++i) largest = std::max(largest, magnitude(values[i]));
  return std::bit_cast<float>(largest);
}

void raise(double& largest, double value) {
  if (!(value <= largest) && !std::isnan(largest)) largest = value;
}

Lost count_lost(const float* before, const float* after, int64_t count, float smallest_normal) {
  constexpr int64_t kPiece = int64_t{1} << 30;  // that 32 bits count
  Lost lost;
  for (int64_t begin = 0; begin < count; begin += kPiece) {
    const int64_t end = std::min(count, begin + kPiece);
    const int32_t normal = magnitude(smallest_normal);
    int32_t subnormal = 0, flushed = 0, overflow = 0;
    for (int64_t i = begin; i < end; ++i) {
      const int32_t value = magnitude(before[i]), now = magnitude(after[i]);
      flushed += (value != 0) & (now == 0);
      subnormal += (now != 0) & (now < normal) & (now != value);
      overflow += now >= kInfinity;
    }
    lost.subnormal += subnormal;
    lost.flushed += flushed;
    lost.overflow += overflow;
  }
  return lost;
}

}  // namespace qalora::exporting
