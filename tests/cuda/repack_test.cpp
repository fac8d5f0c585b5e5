// Lane order, word for word, against the plain loops of tiled.h.
#include <gtest/gtest.h>

#include "cuda/tiled.h"

namespace qalora::kernels::cuda {
namespace {

// Whole tiles, tails of rows and of inputs, quads that are not full, groups longer than a tile or than the row, one row.
std::vector<Shape> shapes() {
  std::vector<Shape> all;
  for (const int bits : {2, 3, 4}) {
    for (const auto& [out, in, group] : {std::array<int64_t, 3>{16, 128, 32}, {48, 256, 64}, {5, 32, 32}, {17, 160, 32}, {31, 288, 96},
                                         {9, 416, 128}, {33, 672, 672}, {1, 96, 64}, {16, 640, 256}, {20, 64, 1024}}) {
      all.push_back({out, in, group, bits});
    }
  }
  return all;
}

std::string check_repack(const Api& api) {
  for (const Shape& shape : shapes()) {
    const Weight weight(shape);
    Buffer<uint32_t> codes(weight.codes.size(), 0xDEADBEEF);
    Buffer<float> scales(weight.scales.size(), NAN), offsets(weight.scales.size(), NAN);
    if (api.repack(weight.view, codes.data(), scales.data(), offsets.data(), nullptr) != Status::kOk) return shape.text() + ": refused";
    const int64_t code = first_difference(codes, weight.codes);
    if (code >= 0) return shape.text() + ": word " + std::to_string(code);
    if (first_difference(scales, weight.scales) >= 0) return shape.text() + ": scales";
    if (first_difference(offsets, weight.offsets) >= 0) return shape.text() + ": offsets";
  }
  return "";
}

TEST(Repack, PutsEveryCodeInItsPlace) { EXPECT_EQ(check_repack(api()), ""); }

TEST(Repack, RefusesWhatNoKernelTakes) {
  const Weight weight({16, 128, 32, 4});
  Buffer<uint32_t> codes(weight.codes.size());
  Buffer<float> scales(weight.scales.size()), offsets(weight.scales.size());
  const auto run = [&](auto change) {
    PackedView view = weight.view;
    change(view);
    return api().repack(view, codes.data(), scales.data(), offsets.data(), nullptr);
  };
  EXPECT_EQ(run([](PackedView&) {}), Status::kOk);
  EXPECT_EQ(run([](PackedView& view) { view.bits = 6; }), Status::kUnsupported);
  EXPECT_EQ(run([](PackedView& view) { view.group_size = 48; }), Status::kUnsupported);
  EXPECT_EQ(run([](PackedView& view) { view.in_features = 100; }), Status::kUnsupported);
  EXPECT_EQ(run([](PackedView& view) { view.codes = nullptr; }), Status::kBadArgument);
  EXPECT_EQ(api().repack(weight.view, codes.data(), scales.data() + 1, offsets.data(), nullptr), Status::kBadArgument);
}

}  // namespace
}  // namespace qalora::kernels::cuda
