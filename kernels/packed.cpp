// Packing and unpacking of a row's bit stream, and the sums of its groups. Plain loops for every processor.
#include "qalora/kernels/packed.h"

namespace qalora::kernels {

void pack_row(const uint8_t* codes, int64_t in_features, int bits, uint32_t* packed) {
  uint64_t waiting = 0;  // bits not yet written, lowest first
  int filled = 0;
  for (int64_t k = 0; k < in_features; ++k) {
    waiting |= uint64_t{codes[k]} << filled;
    filled += bits;
    if (filled < 32) continue;
    *packed++ = static_cast<uint32_t>(waiting);
    waiting >>= 32;
    filled -= 32;
  }
  if (filled > 0) *packed = static_cast<uint32_t>(waiting);
}

void unpack_row(const uint32_t* packed, int64_t in_features, int bits, uint8_t* codes) {
  const auto* bytes = reinterpret_cast<const unsigned char*>(packed);  // a mapped file need not be aligned
  const uint64_t mask = (uint64_t{1} << bits) - 1;
  uint64_t waiting = 0;
  int filled = 0;
  for (int64_t k = 0; k < in_features; ++k) {
    if (filled < bits) {
      waiting |= uint64_t{*bytes++} << filled;
      filled += 8;
    }
    codes[k] = static_cast<uint8_t>(waiting & mask);
    waiting >>= bits;
    filled -= bits;
  }
}

namespace {

// Eight running sums, folded in a fixed order: fast without letting the compiler reorder anything.
float sum(const float* x, int64_t count) {
  constexpr int kLanes = 8;
  float lanes[kLanes] = {};
  int64_t k = 0;
  for (; k + kLanes <= count; k += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) lanes[lane] += x[k + lane];
  }
  for (int lane = 0; k < count; ++k, ++lane) lanes[lane] += x[k];
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  }
  return lanes[0];
}

}  // namespace

void pool_rows(const float* x, int64_t tokens, int64_t in_features, int64_t group_size, Pooling pooling, float* out) {
  for (int64_t token = 0; token < tokens; ++token, x += in_features) {
    for (int64_t begin = 0; begin < in_features; begin += group_size) {
      const int64_t left = in_features - begin;
      const int64_t count = left < group_size ? left : group_size;
      const float total = sum(x + begin, count);
      *out++ = pooling == Pooling::kMean ? total / static_cast<float>(count) : total;
    }
  }
}

}  // namespace qalora::kernels
