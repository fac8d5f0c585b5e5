#include "matrix.h"

#include <cstring>

#include "engine.h"
#include "half.h"

namespace cuda_shim {
namespace {

constexpr unsigned kAllLanes = 0xffffffffu;

struct LoadOperand {
  uint32_t row[4];  // the 8 elements at this lane's address
  uint32_t* result;
};

// Matrix i's rows come from lanes 8i .. 8i + 7; lane l receives row l / 4, columns 2 (l % 4) and + 1: one word.
void execute_load(unsigned, void* const* operands) {
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const auto& from = *static_cast<const LoadOperand*>(operands[8 * i + lane / 4]);
      static_cast<LoadOperand*>(operands[lane])->result[i] = from.row[lane % 4];
    }
  }
}

struct MultiplyOperand {
  float* d;
  const uint32_t *a, *b;
};

template <float (*kDecode)(uint16_t)>
void execute_multiply(unsigned, void* const* operands) {
  double a[16][16], b[16][8];  // [row, k], [k, column]
  const auto low = [](uint32_t word) { return static_cast<double>(kDecode(static_cast<uint16_t>(word))); };
  const auto high = [](uint32_t word) { return static_cast<double>(kDecode(static_cast<uint16_t>(word >> 16))); };
  for (int lane = 0; lane < kLanes; ++lane) {
    const auto& from = *static_cast<const MultiplyOperand*>(operands[lane]);
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; ++i) {
      const int row = g + i % 2 * 8, k = 2 * t + i / 2 * 8;
      a[row][k] = low(from.a[i]);
      a[row][k + 1] = high(from.a[i]);
    }
    for (int i = 0; i < 2; ++i) {
      const int k = 2 * t + i * 8;
      b[k][g] = low(from.b[i]);
      b[k + 1][g] = high(from.b[i]);
    }
  }
  double sums[16][8];
  for (int lane = 0; lane < kLanes; ++lane) {
    const float* d = static_cast<const MultiplyOperand*>(operands[lane])->d;
    for (int i = 0; i < 4; ++i) sums[lane / 4 + i / 2 * 8][2 * (lane % 4) + i % 2] = d[i];
  }
  for (int row = 0; row < 16; ++row) {
    for (int k = 0; k < 16; ++k) {
      for (int column = 0; column < 8; ++column) sums[row][column] += a[row][k] * b[k][column];
    }
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    float* d = static_cast<const MultiplyOperand*>(operands[lane])->d;
    for (int i = 0; i < 4; ++i) d[i] = static_cast<float>(sums[lane / 4 + i / 2 * 8][2 * (lane % 4) + i % 2]);
  }
}

}  // namespace

void load_matrix_x4(uint32_t (&r)[4], const void* shared) {
  check_shared("ldmatrix", shared, 16);
  LoadOperand operand{{}, r};
  memcpy(operand.row, shared, sizeof(operand.row));
  meet_warp("ldmatrix", kAllLanes, &operand, execute_load);
}

void multiply_16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Element16 element) {
  MultiplyOperand operand{d, a, b};
  const bool is_half = element == Element16::kHalf;
  meet_warp(is_half ? "mma (half)" : "mma (bfloat16)", kAllLanes, &operand,
            is_half ? execute_multiply<half_to_float> : execute_multiply<bfloat16_to_float>);
}

}  // namespace cuda_shim
