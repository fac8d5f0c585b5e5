// Random packed matrices, in the checkpoint's layout and in lane order as plain loops put it there. What the tests of
// the kernels on packed weights share.
#pragma once

#include <array>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "cuda/support.h"
#include "qalora/kernels/reference.h"

namespace qalora::test::cuda {

using kernels::PackedView;
using kernels::cuda::bytes_of;
using kernels::cuda::Panel;
using kernels::cuda::TiledShape;
using kernels::cuda::TiledView;

// Where the first element that is not the same bits lies, or -1.
template <typename T>
int64_t first_difference(const std::vector<T>& a, const std::vector<T>& b) {
  for (size_t i = 0; i < a.size(); ++i) {
    if (std::memcmp(&a[i], &b[i], sizeof(T)) != 0) return static_cast<int64_t>(i);
  }
  return a.size() == b.size() ? -1 : static_cast<int64_t>(a.size());
}

struct Shape {
  int64_t out_features, in_features, group_size;
  int bits;
  std::string text() const {
    return std::to_string(bits) + " bits, " + std::to_string(out_features) + " x " + std::to_string(in_features) +
           ", group " + std::to_string(group_size);
  }
};

inline int code_of(const PackedView& view, int64_t row, int64_t column) {
  int code = 0;
  for (int bit = 0; bit < view.bits; ++bit) {
    const int64_t position = column * view.bits + bit;
    code |= static_cast<int>(view.codes[row * view.words() + position / 32] >> (position % 32) & 1u) << bit;
  }
  return code;
}

struct Weight {
  PackedView view;  // on the host
  TiledShape shape;
  std::vector<uint32_t> packed, codes;                          // codes, scales, offsets: in lane order
  std::vector<float> row_scales, row_offsets, scales, offsets;  // row_..: [out_features, groups]

  explicit Weight(const Shape& size, uint64_t seed = 1)
      : view{nullptr, nullptr, nullptr, size.out_features, size.in_features, size.group_size, size.bits},
        shape{size.out_features, size.in_features, size.group_size, size.bits},
        packed(static_cast<size_t>(size.out_features * view.words())),
        codes(static_cast<size_t>(shape.code_words())),
        row_scales(static_cast<size_t>(size.out_features * view.groups())),
        row_offsets(row_scales.size()),
        scales(static_cast<size_t>(shape.group_floats())),
        offsets(scales.size()) {
    Generator random(seed);
    for (auto& word : packed) word = random.next();
    for (auto& scale : row_scales) scale = random.uniform(-0.02f, 0.02f);
    // Offsets that belong to the scales, as a quantiser makes them: b_c is small beside s * c.
    const auto centre = static_cast<float>(1 << (size.bits - 1));
    for (size_t i = 0; i < row_offsets.size(); ++i)
      row_offsets[i] = -centre * row_scales[i] + random.uniform(-0.02f, 0.02f);
    view.codes = packed.data(), view.scales = row_scales.data(), view.offsets = row_offsets.data();
    place_codes();
    place_groups();
  }
  Weight(const Weight&) = delete;

  size_t row_group(int64_t row, int64_t group) const { return static_cast<size_t>(row * view.groups() + group); }
  // A group's place in scales and offsets.
  size_t lane_group(int64_t row, int64_t group) const {
    const int64_t lane = row % 8 * 4 + group % 4;
    return static_cast<size_t>(((row / 16 * shape.quads() + group / 4) * 32 + lane) * 2 + row % 16 / 8);
  }

 private:
  // The text at the top of kernels/cuda/tile.h, a code at a time.
  void place_codes() {
    const int bits = view.bits;
    for (int64_t row = 0; row < view.out_features; ++row) {
      for (int64_t column = 0; column < view.in_features; ++column) {
        uint32_t* tile = codes.data() + (row / 16 * shape.input_tiles() + column / 128) * 64 * bits;
        const auto code = static_cast<uint32_t>(code_of(view, row, column));
        const int64_t half = row % 16 / 8, block = column % 128 / 32, lane = row % 8 * 4 + column % 32 / 8;
        const int64_t pair = column % 8 / 2, odd = column % 2;
        if (bits == 4) {
          tile[(half * 32 + lane) * 4 + block] |= code << (16 * odd + 4 * pair);
          continue;
        }
        tile[lane * 4 + block] |= (code & 3) << (16 * odd + 8 * half + 2 * pair);
        if (bits == 3)
          tile[128 + lane * 2 + block / 2] |= (code >> 2) << (16 * odd + 2 * (4 * half + pair) + block % 2);
      }
    }
  }
  void place_groups() {
    for (int64_t row = 0; row < view.out_features; ++row) {
      for (int64_t group = 0; group < view.groups(); ++group) {
        scales[lane_group(row, group)] = row_scales[row_group(row, group)];
        offsets[lane_group(row, group)] = row_offsets[row_group(row, group)];
      }
    }
  }
};

// The same on the device.
struct DeviceWeight {
  Buffer<uint32_t> codes;
  Buffer<float> scales, offsets;
  TiledView view;

  explicit DeviceWeight(const Weight& weight)
      : codes(weight.codes),
        scales(weight.scales),
        offsets(weight.offsets),
        view{weight.shape, codes.data(), scales.data(), offsets.data()} {}
};

// Below which size a rounding's error no longer shrinks with the number.
inline double smallest(Type type) { return type == Type::kHalf ? 0x1p-25 : 0x1p-134; }

// A matrix on the device, [rows, stride] of `type`; what nobody writes is NaN.
class Matrix {
 public:
  Matrix(int64_t rows, int64_t stride, Type type)
      : stride(stride),
        type(type),
        memory_(rows * stride * bytes_of(type)) {}
  // values: [rows, width], width <= stride
  Matrix(const std::vector<float>& values, int64_t rows, int64_t stride, Type type) : Matrix(rows, stride, type) {
    std::vector<float> padded(static_cast<size_t>(rows * stride), NAN);
    const int64_t width = static_cast<int64_t>(values.size()) / rows;
    for (int64_t i = 0; i < rows * width; ++i)
      padded[static_cast<size_t>(i / width * stride + i % width)] = values[static_cast<size_t>(i)];
    memory_.upload(encode(padded, type));
  }
  void* data() const { return memory_.data(); }
  std::vector<unsigned char> bytes() const { return memory_.download(); }
  std::vector<float> values() const { return decode(memory_.download(), type); }

  const int64_t stride;
  const Type type;

 private:
  Buffer<unsigned char> memory_;
};

}  // namespace qalora::test::cuda
