// For every processor, and for the ends of rows in the faster files.
#include <cstring>

#include "qalora/kernels/isa.h"

namespace qalora::kernels::scalar {

namespace {

// A code has at most 8 bits, so it lies in one byte or in two neighbours; the second is read only when it is needed.
unsigned code_at(const unsigned char* row, int bits, int64_t k) {
  const int64_t position = k * bits;
  const unsigned char* byte = row + position / 8;
  const int shift = static_cast<int>(position % 8);
  unsigned value = byte[0];
  if (shift + bits > 8) value |= static_cast<unsigned>(byte[1]) << 8;
  return value >> shift & ((1u << bits) - 1);
}

// Rounded to nearest, ties to even; a NaN stays a NaN.
uint16_t to_bf16(float value) {
  uint32_t word;
  std::memcpy(&word, &value, sizeof word);
  if ((word & 0x7FFFFFFF) > 0x7F800000) return static_cast<uint16_t>(word >> 16 | 0x40);
  return static_cast<uint16_t>((word + 0x7FFF + (word >> 16 & 1)) >> 16);
}

void store(float value, float* out) { *out = value; }
void store(float value, uint16_t* out) { *out = to_bf16(value); }

template <typename Out>
void stretch(const unsigned char* row, int bits, int64_t begin, int64_t end, float scale, float offset, Out* out) {
  for (int64_t k = begin; k < end; ++k) store(scale * static_cast<float>(code_at(row, bits, k)) + offset, out++);
}

template <typename Out>
void rows(const PackedView& view, int64_t row_begin, int64_t row_end, Out* out) {
  const auto* codes = reinterpret_cast<const unsigned char*>(view.codes);
  const int64_t row_bytes = view.words() * 4, groups = view.groups();
  for (int64_t row = row_begin; row < row_end; ++row, out += view.in_features) {
    for (int64_t group = 0; group < groups; ++group) {
      const int64_t begin = group * view.group_size;
      const int64_t end = view.in_features - begin < view.group_size ? view.in_features : begin + view.group_size;
      float scale, offset;  // copied: a mapped file need not be aligned
      std::memcpy(&scale, view.scales + row * groups + group, sizeof scale);
      std::memcpy(&offset, view.offsets + row * groups + group, sizeof offset);
      stretch(codes + row * row_bytes, view.bits, begin, end, scale, offset, out + begin);
    }
  }
}

}  // namespace

void dequantize_stretch(const unsigned char* row, int bits, int64_t begin, int64_t end, float scale, float offset, float* out) {
  stretch(row, bits, begin, end, scale, offset, out);
}

void dequantize_stretch_bf16(const unsigned char* row, int bits, int64_t begin, int64_t end, float scale, float offset, uint16_t* out) {
  stretch(row, bits, begin, end, scale, offset, out);
}

void dequantize(const PackedView& view, int64_t row_begin, int64_t row_end, float* out) { rows(view, row_begin, row_end, out); }

void dequantize_bf16(const PackedView& view, int64_t row_begin, int64_t row_end, uint16_t* out) { rows(view, row_begin, row_end, out); }

}  // namespace qalora::kernels::scalar
