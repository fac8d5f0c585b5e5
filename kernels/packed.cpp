// Packing and unpacking of a row's bit stream. Plain loops for every processor.
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

}  // namespace qalora::kernels
