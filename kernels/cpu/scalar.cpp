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

// Codes [begin, end) of one group. Eight codes that begin at a multiple of eight are a whole number of bytes.
template <int kBits, typename Out>
void group_values(const unsigned char* stream, int64_t begin, int64_t end, float scale, float offset, Out* out) {
  int64_t k = begin;
  for (; begin % 8 == 0 && k + 8 <= end; k += 8) {
    uint64_t chunk = 0;
    for (int i = 0; i < kBits; ++i) chunk |= uint64_t{stream[k / 8 * kBits + i]} << (8 * i);
    for (int i = 0; i < 8; ++i, chunk >>= kBits) {
      store(scale * static_cast<float>(static_cast<int>(chunk & ((1u << kBits) - 1))) + offset, out++);
    }
  }
  stretch(stream, kBits, k, end, scale, offset, out);
}

// Calls visit(stream, begin, end, scale, offset) for each group of a row.
template <typename Visit>
void each_group(const PackedView& view, int64_t row, Visit visit) {
  const auto* stream = reinterpret_cast<const unsigned char*>(view.codes) + row * view.words() * 4;
  const int64_t groups = view.groups();
  for (int64_t group = 0; group < groups; ++group) {
    const int64_t begin = group * view.group_size;
    const int64_t end = view.in_features - begin < view.group_size ? view.in_features : begin + view.group_size;
    float scale, offset;  // copied: a mapped file need not be aligned
    std::memcpy(&scale, view.scales + row * groups + group, sizeof scale);
    std::memcpy(&offset, view.offsets + row * groups + group, sizeof offset);
    visit(stream, begin, end, scale, offset);
  }
}

template <int kBits, typename Out>
void rows(const PackedView& view, int64_t row_begin, int64_t row_end, Out* out) {
  for (int64_t row = row_begin; row < row_end; ++row, out += view.in_features) {
    each_group(view, row, [&](const unsigned char* stream, int64_t begin, int64_t end, float scale, float offset) {
      group_values<kBits>(stream, begin, end, scale, offset, out + begin);
    });
  }
}

template <int kBits>
void products(const PackedView& view, const float* x, int64_t tokens, int64_t row_begin, int64_t row_end, float* y) {
  constexpr int64_t kPiece = 64;
  float weights[kPiece];
  for (int64_t row = row_begin; row < row_end; ++row) {
    for (int64_t token = 0; token < tokens; ++token) y[token * view.out_features + row] = 0;
    each_group(view, row, [&](const unsigned char* stream, int64_t begin, int64_t end, float scale, float offset) {
      for (int64_t k = begin; k < end; k += kPiece) {
        const int64_t count = end - k < kPiece ? end - k : kPiece;
        group_values<kBits>(stream, k, k + count, scale, offset, weights);
        for (int64_t token = 0; token < tokens; ++token) {
          float sum = 0;
          for (int64_t i = 0; i < count; ++i) sum += weights[i] * x[token * view.in_features + k + i];
          y[token * view.out_features + row] += sum;
        }
      }
    });
  }
}

template <typename Out>
void any_rows(const PackedView& view, int64_t row_begin, int64_t row_end, Out* out) {
  switch (view.bits) {
    case 2: return rows<2>(view, row_begin, row_end, out);
    case 3: return rows<3>(view, row_begin, row_end, out);
    case 4: return rows<4>(view, row_begin, row_end, out);
    case 5: return rows<5>(view, row_begin, row_end, out);
    case 6: return rows<6>(view, row_begin, row_end, out);
    case 8: return rows<8>(view, row_begin, row_end, out);
  }
}

}  // namespace

void dequantize_stretch(const unsigned char* row, int bits, int64_t begin, int64_t end, float scale, float offset,
                        float* out) {
  stretch(row, bits, begin, end, scale, offset, out);
}

void dequantize_stretch_bf16(const unsigned char* row, int bits, int64_t begin, int64_t end, float scale, float offset,
                             uint16_t* out) {
  stretch(row, bits, begin, end, scale, offset, out);
}

void dequantize(const PackedView& view, int64_t row_begin, int64_t row_end, float* out) {
  any_rows(view, row_begin, row_end, out);
}

void dequantize_bf16(const PackedView& view, int64_t row_begin, int64_t row_end, uint16_t* out) {
  any_rows(view, row_begin, row_end, out);
}

void matvec(const PackedView& view, const float* x, int64_t tokens, int64_t row_begin, int64_t row_end, float* y) {
  switch (view.bits) {
    case 2: return products<2>(view, x, tokens, row_begin, row_end, y);
    case 3: return products<3>(view, x, tokens, row_begin, row_end, y);
    case 4: return products<4>(view, x, tokens, row_begin, row_end, y);
    case 5: return products<5>(view, x, tokens, row_begin, row_end, y);
    case 6: return products<6>(view, x, tokens, row_begin, row_end, y);
    case 8: return products<8>(view, x, tokens, row_begin, row_end, y);
  }
}

}  // namespace qalora::kernels::scalar
