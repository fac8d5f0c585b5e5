// Lane order, word for word, against the plain loops of tiled.h.
#include "cuda/tiled.h"

namespace qalora::test::cuda {
namespace {

// Whole tiles, tails of rows and of inputs, quads that are not full, groups longer than a tile or than the row, one
// row.
std::vector<Shape> shapes() {
  std::vector<Shape> all;
  for (const int bits : {2, 3, 4}) {
    for (const auto& [out, in, group] : {std::array<int64_t, 3>{16, 128, 32},
                                         {48, 256, 64},
                                         {5, 32, 32},
                                         {17, 160, 32},
                                         {31, 288, 96},
                                         {9, 416, 128},
                                         {33, 672, 672},
                                         {1, 96, 64},
                                         {16, 640, 256},
                                         {20, 64, 1024}}) {
      all.push_back({out, in, group, bits});
    }
  }
  return all;
}

struct Device {
  Buffer<uint32_t> packed;
  Buffer<float> row_scales, row_offsets;
  PackedView view;
  Buffer<uint32_t> codes;
  Buffer<float> scales, offsets;

  explicit Device(const Weight& weight)
      : packed(weight.packed),
        row_scales(weight.row_scales),
        row_offsets(weight.row_offsets),
        view(weight.view),
        codes(static_cast<int64_t>(weight.codes.size())),
        scales(static_cast<int64_t>(weight.scales.size())),
        offsets(scales.size()) {
    view.codes = packed.data(), view.scales = row_scales.data(), view.offsets = row_offsets.data();
  }
};

KERNEL_CHECK(repack, EveryCodeIsInItsPlace) {
  for (const Shape& shape : shapes()) {
    const Weight weight(shape);
    const Device device(weight);
    ASSERT_EQ(api.repack(device.view, device.codes.data(), device.scales.data(), device.offsets.data(), nullptr),
              Status::kOk);
    ASSERT_EQ(first_difference(device.codes.download(), weight.codes), -1) << shape.text();
    ASSERT_EQ(first_difference(device.scales.download(), weight.scales), -1) << shape.text();
    ASSERT_EQ(first_difference(device.offsets.download(), weight.offsets), -1) << shape.text();
    results.add(device.codes.download());
  }
}

KERNEL_CHECK(repack, RefusesWhatNoKernelTakes) {
  const Weight weight({16, 128, 32, 4});
  const Device device(weight);
  const auto run = [&](auto change) {
    PackedView view = device.view;
    change(view);
    return api.repack(view, device.codes.data(), device.scales.data(), device.offsets.data(), nullptr);
  };
  EXPECT_EQ(run([](PackedView&) {}), Status::kOk);
  EXPECT_EQ(run([](PackedView& view) { view.bits = 6; }), Status::kUnsupported);
  EXPECT_EQ(run([](PackedView& view) { view.group_size = 48; }), Status::kUnsupported);
  EXPECT_EQ(run([](PackedView& view) { view.in_features = 100; }), Status::kUnsupported);
  EXPECT_EQ(run([](PackedView& view) { view.codes = nullptr; }), Status::kBadArgument);
  EXPECT_EQ(api.repack(device.view, device.codes.data(), device.scales.data() + 1, device.offsets.data(), nullptr),
            Status::kBadArgument);
}

}  // namespace
}  // namespace qalora::test::cuda
