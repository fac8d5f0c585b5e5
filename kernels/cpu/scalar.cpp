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

template <int kBits, typename Out>
void rows(const PackedView& view, int64_t row_begin, int64_t row_end, Out* out) {
  const auto* codes = reinterpret_cast<const unsigned char*>(view.codes);
  const int64_t row_bytes = view.words() * 4, groups = view.groups();
  for (int64_t row = row_begin; row < row_end; ++row, out += view.in_features) {
    const unsigned char* const stream = codes + row * row_bytes;
    for (int64_t group = 0; group < groups; ++group) {
      const int64_t begin = group * view.group_size;
      const int64_t end = view.in_features - begin < view.group_size ? view.in_features : begin + view.group_size;
      float scale, offset;  // copied: a mapped file need not be aligned
      std::memcpy(&scale, view.scales + row * groups + group, sizeof scale);
      std::memcpy(&offset, view.offsets + row * groups + group, sizeof offset);
      int64_t k = begin;
      for (; begin % 8 == 0 && k + 8 <= end; k += 8) {  // eight codes are a whole number of bytes
        uint64_t chunk = 0;
        for (int i = 0; i < kBits; ++i) chunk |= uint64_t{stream[k / 8 * kBits + i]} << (8 * i);
        for (int i = 0; i < 8; ++i, chunk >>= kBits) {
          store(scale * static_cast<float>(static_cast<int>(chunk & ((1u << kBits) - 1))) + offset, out + k + i);
        }
      }
      stretch(stream, kBits, k, end, scale, offset, out + k);
    }
  }
}

template <typename Out>
void any_rows(const PackedView& view, int64_t row_begin, int64_t row_end, Out* out) {
  switch (view.bits) {
    case 2: return rows<2>(view, row_begin, row_end, out);
    case 3: return rows<3>(view, row_begin, row_end, out);
    case 4: return rows<4>(view, row_begin, row_end, out);
    case 6: return rows<6>(view, row_begin, row_end, out);
    case 8: return rows<8>(view, row_begin, row_end, out);
  }
}

}  // namespace

void dequantize_stretch(const unsigned char* row, int bits, int64_t begin, int64_t end, float scale, float offset, float* out) {
  stretch(row, bits, begin, end, scale, offset, out);
}

void dequantize_stretch_bf16(const unsigned char* row, int bits, int64_t begin, int64_t end, float scale, float offset, uint16_t* out) {
  stretch(row, bits, begin, end, scale, offset, out);
}

void dequantize(const PackedView& view, int64_t row_begin, int64_t row_end, float* out) { any_rows(view, row_begin, row_end, out); }

void dequantize_bf16(const PackedView& view, int64_t row_begin, int64_t row_end, uint16_t* out) {
  any_rows(view, row_begin, row_end, out);
}

}  // namespace qalora::kernels::scalar
