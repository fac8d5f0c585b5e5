// matvec against the double-precision reference.
#include "cuda/products.h"

namespace qalora::test::cuda {
namespace {

struct Case {
  Shape shape;
  int64_t rows, x_more, y_more;
  Type x_type, y_type;
};

// Every number of rows; fewer tiles than warps and more than two rounds of what is under way; tails of rows and inputs;
// an odd number of row tiles; groups shorter and longer than a tile, of 96, and longer than the row.
std::vector<Case> cases() {
  std::vector<Case> all;
  const Type bf16 = Type::kBFloat16, fp16 = Type::kHalf, f32 = Type::kFloat;
  for (const int bits : {2, 3, 4}) {
    all.push_back({{16, 1024, 32, bits}, 1, 0, 0, bf16, bf16});
    all.push_back({{37, 160, 32, bits}, 1, 0, 3, fp16, f32});
    all.push_back({{24, 416, 64, bits}, 3, 8, 0, bf16, f32});
    all.push_back({{16, 6432, 96, bits}, 1, 0, 0, bf16, f32});
    all.push_back({{16, 4640, 128, bits}, 4, 0, 1, fp16, fp16});
    all.push_back({{47, 1312, 32, bits}, 8, 0, 0, bf16, f32});
    all.push_back({{33, 672, 672, bits}, 5, 16, 0, fp16, f32});
    all.push_back({{5, 32, 256, bits}, 7, 0, 0, bf16, bf16});
    all.push_back({{16, 2592, 256, bits}, 6, 0, 0, bf16, f32});
    all.push_back({{1, 96, 32, bits}, 2, 0, 0, fp16, fp16});
  }
  return all;
}

Status run(const Api& api, const Product& product) {
  return api.matvec(product.device.view, product.x_there.data(), product.x_stride, product.x_type,
                    product.sums_there.data(), product.rows, product.y.data(), product.y_stride, product.y_type,
                    nullptr);
}

// A term goes through two sums of 16 in a block, a sum over its warp's blocks, one over the warps, and one with the
// zero term, which itself is a sum over groups.
double roundings(const Shape& shape) { return 32 + static_cast<double>(shape.in_features) / 32 / 8 + 1 + 8 + 4; }

KERNEL_CHECK(matvec, IsTheProduct) {
  for (const Case& c : cases()) {
    const Weight weight(c.shape);
    const DeviceWeight device(weight);
    for (const bool wild : {false, true}) {
      const Product product(weight, device, c.rows, c.x_type, c.y_type, c.x_more, c.y_more, wild);
      ASSERT_EQ(run(api, product), Status::kOk);
      results.add(product.y.bytes());
      product.expect_right(roundings(c.shape), 0);
    }
  }
}

KERNEL_CHECK(matvec, ARowsBitsDoNotDependOnItsNeighbours) {
  for (const int bits : {2, 3, 4}) {
    const Weight weight({40, 1184, 32, bits});
    const DeviceWeight device(weight);
    const Product all(weight, device, 8, Type::kBFloat16, Type::kFloat, 0, 0, true);
    ASSERT_EQ(run(api, all), Status::kOk);
    for (const auto& [begin, end] : {std::pair<int64_t, int64_t>{2, 3}, {4, 7}, {0, 5}}) {
      const Product some = all.part(begin, end);
      ASSERT_EQ(run(api, some), Status::kOk);
      for (int64_t row = begin; row < end; ++row)
        ASSERT_EQ(all.row_bytes(row), some.row_bytes(row - begin)) << some.text();
    }
    EXPECT_NE(all.row_bytes(0), all.row_bytes(1));
  }
}

KERNEL_CHECK(matvec, StackedMatricesAreOne) {
  const Weight weight({48, 256, 32, 4});
  const DeviceWeight device(weight);
  const Product whole(weight, device, 1, Type::kBFloat16, Type::kFloat, 0, 0, false);
  ASSERT_EQ(run(api, whole), Status::kOk);
  // The same rows as two matrices: the first 16, and the 32 behind them.
  std::vector<unsigned char> joined;
  for (const auto& [first, count] : {std::pair<int64_t, int64_t>{0, 16}, {16, 32}}) {
    TiledView view = device.view;
    view.shape.out_features = count;
    const TiledShape before = {first, 256, 32, 4};
    view.codes += before.code_words(), view.scales += before.group_floats(), view.offsets += before.group_floats();
    const Matrix y(1, count, Type::kFloat);
    ASSERT_EQ(api.matvec(view, whole.x_there.data(), whole.x_stride, whole.x_type, whole.sums_there.data(), 1, y.data(),
                         count, Type::kFloat, nullptr),
              Status::kOk);
    const auto bytes = y.bytes();
    joined.insert(joined.end(), bytes.begin(), bytes.end());
  }
  EXPECT_EQ(joined, whole.row_bytes(0));
}

KERNEL_CHECK(matvec, RefusesWhatItDoesNotTake) {
  const Weight weight({16, 128, 32, 4});
  const DeviceWeight device(weight);
  const Product p(weight, device, 8, Type::kBFloat16, Type::kFloat, 8, 0, false);
  const auto run = [&](int64_t rows, int64_t x_stride, Type x_type, int64_t y_stride, int64_t shift) {
    return api.matvec(device.view, static_cast<char*>(p.x_there.data()) + shift, x_stride, x_type, p.sums_there.data(),
                      rows, p.y.data(), y_stride, Type::kFloat, nullptr);
  };
  EXPECT_EQ(run(8, 136, Type::kBFloat16, 16, 0), Status::kOk);
  EXPECT_EQ(run(0, 136, Type::kBFloat16, 16, 0), Status::kOk);
  EXPECT_EQ(run(9, 136, Type::kBFloat16, 16, 0), Status::kUnsupported);
  EXPECT_EQ(run(8, 136, Type::kFloat, 16, 0), Status::kUnsupported);
  EXPECT_EQ(run(7, 132, Type::kBFloat16, 16, 0), Status::kBadArgument);
  EXPECT_EQ(run(8, 120, Type::kBFloat16, 16, 0), Status::kBadArgument);
  EXPECT_EQ(run(8, 136, Type::kBFloat16, 15, 0), Status::kBadArgument);
  EXPECT_EQ(run(7, 136, Type::kBFloat16, 16, 2), Status::kBadArgument);
  EXPECT_EQ(run(-1, 136, Type::kBFloat16, 16, 0), Status::kBadArgument);
}

}  // namespace
}  // namespace qalora::test::cuda
