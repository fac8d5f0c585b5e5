// offsets + scaling * B A against a double-precision product.
#include "cuda/tiled.h"

namespace qalora::test::cuda {
namespace {

struct Case {
  Shape shape;
  int64_t rank;
};

// Ranks below, at and above a piece of B in shared memory (64), no multiple of 4, none at all; more groups than a block
// has threads.
const Case kCases[] = {{{16, 128, 32, 4}, 8}, {{33, 640, 32, 3}, 5}, {{20, 96, 64, 2}, 64},    {{48, 256, 128, 4}, 67},
                       {{7, 32, 32, 2}, 1},   {{16, 224, 32, 4}, 0}, {{18, 4480, 32, 2}, 130}, {{16, 128, 256, 4}, 16}};
constexpr float kScaling = 0.37f;

void expect_folded(const Weight& weight, const std::vector<float>& a, const std::vector<float>& b, int64_t rank,
                   std::vector<float> folded, const std::string& what) {
  const int64_t groups = weight.view.groups();
  std::vector<float> actual;
  std::vector<double> expected, tolerance;
  for (int64_t row = 0; row < weight.view.out_features; ++row) {
    for (int64_t group = 0; group < groups; ++group) {
      double sum = 0, size = 0;
      for (int64_t r = 0; r < rank; ++r) {
        const double product =
            static_cast<double>(b[static_cast<size_t>(row * rank + r)]) * a[static_cast<size_t>(r * groups + group)];
        sum += product, size += std::fabs(product);
      }
      expected.push_back(weight.row_offsets[weight.row_group(row, group)] + double{kScaling} * sum);
      // `rank` fused multiply-adds and the last one, each half an ulp of at most the sum of the terms' sizes.
      tolerance.push_back(0x1p-24 *
                          (static_cast<double>(rank + 1) * double{kScaling} * size + std::fabs(expected.back())));
      float& place = folded[weight.lane_group(row, group)];
      actual.push_back(place);
      place = 0;
    }
  }
  expect_close(actual, expected, tolerance, what);
  // What is no group's place is zero: the kernels that read it trust that.
  EXPECT_EQ(first_difference(folded, std::vector<float>(folded.size())), -1) << what;
}

KERNEL_CHECK(fold, AddsTheAdapterToTheOffsets) {
  for (const auto& [shape, rank] : kCases) {
    const Weight weight(shape);
    const DeviceWeight device(weight);
    Generator random(3);
    const std::vector<float> a = random.uniforms(rank * weight.view.groups(), -2, 2),
                             b = random.uniforms(shape.out_features * rank, -2, 2);
    const Buffer<float> a_there(a), b_there(b), folded(static_cast<int64_t>(weight.offsets.size()));
    ASSERT_EQ(api.fold(weight.shape, device.offsets.data(), a_there.data(), b_there.data(), rank, kScaling,
                       folded.data(), nullptr),
              Status::kOk);
    results.add(folded.download());
    expect_folded(weight, a, b, rank, folded.download(), shape.text() + ", rank " + std::to_string(rank));
  }
}

KERNEL_CHECK(fold, MayWriteWhereItReads) {
  const Weight weight({33, 640, 32, 4});
  const DeviceWeight device(weight);
  const Buffer<float> a(std::vector<float>(4 * 20, 0.5f)), b(std::vector<float>(33 * 4, -2.0f)),
      apart(device.offsets.size());
  ASSERT_EQ(api.fold(weight.shape, device.offsets.data(), a.data(), b.data(), 4, 0.1f, apart.data(), nullptr),
            Status::kOk);
  ASSERT_EQ(api.fold(weight.shape, device.offsets.data(), a.data(), b.data(), 4, 0.1f, device.offsets.data(), nullptr),
            Status::kOk);
  EXPECT_EQ(first_difference(apart.download(), device.offsets.download()), -1);
  EXPECT_NE(first_difference(apart.download(), weight.offsets), -1);
}

}  // namespace
}  // namespace qalora::test::cuda
