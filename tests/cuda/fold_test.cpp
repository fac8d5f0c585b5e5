// offsets + scaling * B A against a double-precision product.
#include <gtest/gtest.h>

#include "cuda/tiled.h"

namespace qalora::kernels::cuda {
namespace {

struct Case {
  Shape shape;
  int64_t rank;
};

// Ranks below, at and above a piece of B in shared memory (64), no multiple of 4, none at all; more groups than a block has threads.
const Case kCases[] = {{{16, 128, 32, 4}, 8},  {{33, 640, 32, 3}, 5},  {{20, 96, 64, 2}, 64},   {{48, 256, 128, 4}, 67},
                       {{7, 32, 32, 2}, 1},    {{16, 224, 32, 4}, 0},  {{18, 4480, 32, 2}, 130}, {{16, 128, 256, 4}, 16}};

std::string check_fold(const Api& api) {
  for (const auto& [shape, rank] : kCases) {
    const Weight weight(shape);
    const int64_t groups = weight.view.groups();
    Buffer<float> a(rank * groups), b(shape.out_features * rank), folded(weight.offsets.size(), NAN);
    std::mt19937 random(3);
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < a.size(); ++i) a[i] = normal(random);
    for (int64_t i = 0; i < b.size(); ++i) b[i] = normal(random);
    const float scaling = 0.37f;
    if (api.fold(weight.tiled.shape, weight.offsets.data(), a.data(), b.data(), rank, scaling, folded.data(), nullptr) != Status::kOk) {
      return shape.text() + ": refused";
    }
    Buffer<float> padding(folded.size());  // what is no group's place must be zero: the kernels that read it trust that
    for (int64_t i = 0; i < folded.size(); ++i) padding[i] = folded[i];
    for (int64_t row = 0; row < shape.out_features; ++row) {
      for (int64_t group = 0; group < groups; ++group) {
        double sum = 0, size = 0;
        for (int64_t r = 0; r < rank; ++r) {
          const double product = static_cast<double>(b[row * rank + r]) * a[r * groups + group];
          sum += product, size += std::fabs(product);
        }
        const double offset = weight.row_offsets[weight.row_group(row, group)], expected = offset + scaling * sum;
        // `rank` fused multiply-adds and the last one, each half an ulp of at most the sum of the terms' sizes.
        const double tolerance = 0x1p-24 * (static_cast<double>(rank + 1) * scaling * size + std::fabs(expected));
        const int64_t place = weight.lane_group(row, group);
        if (!(std::fabs(folded[place] - expected) <= tolerance)) {
          return shape.text() + " rank " + std::to_string(rank) + ": row " + std::to_string(row) + " group " + std::to_string(group);
        }
        padding[place] = 0;
      }
    }
    for (int64_t i = 0; i < padding.size(); ++i) {
      if (padding[i] != 0) return shape.text() + ": padding " + std::to_string(i);
    }
  }
  return "";
}

TEST(Fold, AddsTheAdapterToTheOffsets) { EXPECT_EQ(check_fold(api()), ""); }

TEST(Fold, MayWriteWhereItReads) {
  const Weight weight({33, 640, 32, 4});
  Buffer<float> a(4 * weight.view.groups(), 0.5f), b(33 * 4, -2.0f), apart(weight.offsets.size()), inside(weight.offsets.size());
  for (int64_t i = 0; i < inside.size(); ++i) inside[i] = weight.offsets[i];
  ASSERT_EQ(api().fold(weight.tiled.shape, weight.offsets.data(), a.data(), b.data(), 4, 0.1f, apart.data(), nullptr), Status::kOk);
  ASSERT_EQ(api().fold(weight.tiled.shape, inside.data(), a.data(), b.data(), 4, 0.1f, inside.data(), nullptr), Status::kOk);
  EXPECT_EQ(first_difference(apart, inside), -1);
  EXPECT_NE(first_difference(apart, weight.offsets), -1);
}

}  // namespace
}  // namespace qalora::kernels::cuda
