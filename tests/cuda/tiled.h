// Random packed matrices, in the checkpoint's layout and in lane order as plain loops put it there. What the tests of the kernels on packed
// weights share.
#pragma once

#include <array>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "kernels/cuda/dialect.h"
#include "qalora/kernels/reference.h"

namespace qalora::kernels::cuda {

// Memory as a device's allocator gives it: 256-byte aligned. Exactly so long, so that a sanitizer sees one element too far.
template <typename T>
class Buffer {
 public:
  explicit Buffer(int64_t count, T fill = T()) : count_(count) {
    void* memory = nullptr;
    if (posix_memalign(&memory, 256, static_cast<size_t>(count) * sizeof(T)) != 0) std::abort();
    data_ = static_cast<T*>(memory);
    for (int64_t i = 0; i < count; ++i) data_[i] = fill;
  }
  ~Buffer() { std::free(data_); }
  Buffer(const Buffer&) = delete;
  T* data() { return data_; }
  const T* data() const { return data_; }
  T& operator[](int64_t i) { return data_[i]; }
  const T& operator[](int64_t i) const { return data_[i]; }
  int64_t size() const { return count_; }
  int64_t bytes() const { return count_ * static_cast<int64_t>(sizeof(T)); }

 private:
  int64_t count_;
  T* data_ = nullptr;
};

// Where the first element that is not the same bits lies, or -1.
template <typename T>
int64_t first_difference(const Buffer<T>& a, const Buffer<T>& b) {
  for (int64_t i = 0; i < a.size(); ++i) {
    if (std::memcmp(&a[i], &b[i], sizeof(T)) != 0) return i;
  }
  return -1;
}

struct Shape {
  int64_t out_features, in_features, group_size;
  int bits;
  std::string text() const {
    return std::to_string(bits) + " bits, " + std::to_string(out_features) + " x " + std::to_string(in_features) + ", group " +
           std::to_string(group_size);
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
  PackedView view;
  TiledView tiled;
  Buffer<uint32_t> packed;
  Buffer<float> row_scales, row_offsets;  // [out_features, groups]
  Buffer<uint32_t> codes;
  Buffer<float> scales, offsets;

  explicit Weight(const Shape& shape, unsigned seed = 1)
      : view{nullptr, nullptr, nullptr, shape.out_features, shape.in_features, shape.group_size, shape.bits},
        tiled{{shape.out_features, shape.in_features, shape.group_size, shape.bits}, nullptr, nullptr, nullptr},
        packed(shape.out_features * view.words()),
        row_scales(shape.out_features * view.groups()),
        row_offsets(row_scales.size()),
        codes(tiled.shape.code_words()),
        scales(tiled.shape.group_floats()),
        offsets(tiled.shape.group_floats()) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < packed.size(); ++i) packed[i] = static_cast<uint32_t>(random());
    for (int64_t i = 0; i < row_scales.size(); ++i) row_scales[i] = 0.01f * normal(random);
    // Offsets that belong to the scales, as a quantiser makes them: b_c is small beside s * c.
    const auto centre = static_cast<float>(1 << (shape.bits - 1));
    for (int64_t i = 0; i < row_offsets.size(); ++i) row_offsets[i] = -centre * row_scales[i] + 0.01f * normal(random);
    view.codes = packed.data(), view.scales = row_scales.data(), view.offsets = row_offsets.data();
    tiled.codes = codes.data(), tiled.scales = scales.data(), tiled.offsets = offsets.data();
    place_codes();
    place_groups();
  }

  int64_t row_group(int64_t row, int64_t group) const { return row * view.groups() + group; }
  // A group's place in scales and offsets.
  int64_t lane_group(int64_t row, int64_t group) const {
    const int64_t lane = row % 8 * 4 + group % 4;
    return ((row / 16 * tiled.shape.quads() + group / 4) * 32 + lane) * 2 + row % 16 / 8;
  }

 private:
  // The text at the top of kernels/cuda/tile.h, a code at a time.
  void place_codes() {
    const int bits = view.bits;
    for (int64_t row = 0; row < view.out_features; ++row) {
      for (int64_t column = 0; column < view.in_features; ++column) {
        uint32_t* tile = codes.data() + (row / 16 * tiled.shape.input_tiles() + column / 128) * 64 * bits;
        const auto code = static_cast<uint32_t>(code_of(view, row, column));
        const int64_t half = row % 16 / 8, block = column % 128 / 32, lane = row % 8 * 4 + column % 32 / 8;
        const int64_t pair = column % 8 / 2, odd = column % 2;
        if (bits == 4) {
          tile[(half * 32 + lane) * 4 + block] |= code << (16 * odd + 4 * pair);
          continue;
        }
        tile[lane * 4 + block] |= (code & 3) << (16 * odd + 8 * half + 2 * pair);
        if (bits == 3) tile[128 + lane * 2 + block / 2] |= (code >> 2) << (16 * odd + 2 * (4 * half + pair) + block % 2);
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

// 16-bit numbers as raw bits.
inline double widened(uint16_t bits, Type type) {
  if (type == Type::kBFloat16) {
    const uint32_t word = uint32_t{bits} << 16;
    float value;
    std::memcpy(&value, &word, sizeof value);
    return value;
  }
  const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  const double magnitude = exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
  return exponent == 31 ? NAN : bits >> 15 ? -magnitude : magnitude;
}
// The largest relative error of one rounding, and below which size an error is absolute.
inline double half_ulp(Type type) { return type == Type::kFloat ? 0x1p-24 : type == Type::kBFloat16 ? 0x1p-8 : 0x1p-11; }
inline double smallest(Type type) { return type == Type::kHalf ? 0x1p-25 : 0x1p-134; }

// A matrix of any type, [rows, stride], that says what it holds.
struct Matrix {
  int64_t rows, stride;
  Type type;
  Buffer<unsigned char> bytes;

  Matrix(int64_t rows, int64_t stride, Type type, unsigned char fill = 0)
      : rows(rows), stride(stride), type(type), bytes(rows * stride * bytes_of(type), fill) {}
  void* data() { return bytes.data(); }
  double at(int64_t row, int64_t column) const {
    const unsigned char* from = bytes.data() + (row * stride + column) * bytes_of(type);
    if (type == Type::kFloat) {
      float value;
      std::memcpy(&value, from, sizeof value);
      return value;
    }
    uint16_t bits;
    std::memcpy(&bits, from, sizeof bits);
    return widened(bits, type);
  }
  void set(int64_t row, int64_t column, float value) {
    unsigned char* to = bytes.data() + (row * stride + column) * bytes_of(type);
    if (type == Type::kFloat) {
      std::memcpy(to, &value, sizeof value);
    } else if (type == Type::kBFloat16) {
      const __nv_bfloat16 rounded = __float2bfloat16_rn(value);
      std::memcpy(to, &rounded, 2);
    } else {
      const __half rounded = __float2half_rn(value);
      std::memcpy(to, &rounded, 2);
    }
  }
  // Whether nothing was written there.
  bool untouched(int64_t row, int64_t column, unsigned char fill) const {
    const unsigned char* from = bytes.data() + (row * stride + column) * bytes_of(type);
    for (int64_t i = 0; i < bytes_of(type); ++i) {
      if (from[i] != fill) return false;
    }
    return true;
  }
};

inline const char* name_of(Type type) { return type == Type::kFloat ? "f32" : type == Type::kBFloat16 ? "bf16" : "fp16"; }

}  // namespace qalora::kernels::cuda
