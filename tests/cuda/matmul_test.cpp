// matmul against the double-precision reference.
#include "cuda/products.h"

namespace qalora::test::cuda {
namespace {

struct Case {
  Shape shape;
  int64_t rows, x_more, y_more;
  Type x_type, y_type;
  int multiprocessors;  // which decides into how many parts k is cut
};

// Every number of tokens a block may have, and two such blocks; k in one part and in several, with tiles for fewer and
// more than the ring's stages; tails of tokens, rows and inputs; an odd number of row tiles and more than a block has;
// groups of every kind.
std::vector<Case> cases() {
  std::vector<Case> all;
  const Type bf16 = Type::kBFloat16, fp16 = Type::kHalf, f32 = Type::kFloat;
  for (const int bits : {2, 3, 4}) {
    all.push_back({{16, 1536, 32, bits}, 9, 0, 0, bf16, f32, 8});
    all.push_back({{37, 160, 32, bits}, 16, 8, 3, fp16, f32, 1});
    all.push_back({{24, 672, 96, bits}, 17, 0, 0, bf16, bf16, 1});
    all.push_back({{5, 32, 128, bits}, 12, 0, 1, fp16, fp16, 4});
    all.push_back({{33, 1312, 64, bits}, 25, 0, 0, fp16, f32, 16});
  }
  // Parts' sums added four at a time, to 16-bit types too, and one at a time where rows do not begin aligned.
  all.push_back({{20, 1536, 64, 4}, 9, 0, 4, bf16, bf16, 8});
  all.push_back({{20, 1536, 64, 4}, 11, 0, 0, fp16, fp16, 8});
  all.push_back({{20, 1536, 64, 4}, 10, 0, 1, bf16, bf16, 8});
  all.push_back({{21, 1536, 64, 4}, 9, 0, 3, bf16, f32, 8});
  all.push_back({{272, 288, 288, 4}, 10, 0, 0, bf16, f32, 1});
  all.push_back({{16, 544, 32, 4}, 64, 0, 0, bf16, f32, 1});
  all.push_back({{31, 288, 32, 3}, 45, 0, 0, bf16, f32, 1});
  all.push_back({{16, 416, 128, 2}, 128, 0, 0, fp16, f32, 1});
  all.push_back({{16, 160, 32, 4}, 131, 0, 0, bf16, f32, 1});
  return all;
}

Status run(const Api& api, const Product& product, int multiprocessors) {
  const int64_t bytes = api.matmul_workspace_bytes(product.weight.shape, product.rows, multiprocessors);
  const Buffer<unsigned char> workspace(bytes);
  return api.matmul(product.device.view, product.x_there.data(), product.x_stride, product.x_type,
                    product.sums_there.data(), product.rows, product.y.data(), product.y_stride, product.y_type,
                    bytes > 0 ? workspace.data() : nullptr, multiprocessors, nullptr);
}

// A term goes through two sums of 16 in a block of 32 inputs, one over a part's blocks, one over the parts; a zero term
// through a sum of 16 and one over the rest, three times over.
double roundings(const Shape& shape) { return 32 + static_cast<double>(shape.in_features) / 32 + 8; }
// What two bf16 halves of each factor leave out: their own last bits (2^-17 each, of b_c and of the sum) and the
// product of the low halves.
constexpr double kZeroError = 0x1p-16 + 0x1p-16;

KERNEL_CHECK(matmul, IsTheProduct) {
  for (const Case& c : cases()) {
    const Weight weight(c.shape);
    const DeviceWeight device(weight);
    const Product product(weight, device, c.rows, c.x_type, c.y_type, c.x_more, c.y_more, c.rows % 2 == 0);
    ASSERT_EQ(run(api, product, c.multiprocessors), Status::kOk);
    results.add(product.y.bytes());
    product.expect_right(roundings(c.shape), kZeroError);
  }
}

KERNEL_CHECK(matmul, ZeroTermHasMoreThanSixteenBitsOfBothFactors) {
  // Only the zero term: no inputs. 512 groups of unlike sizes.
  const Weight weight({16, 4096, 32, 4});
  const DeviceWeight device(weight);
  const Product product(weight, device, 9, Type::kBFloat16, Type::kFloat, 0, 0, true);
  const Matrix nothing(std::vector<float>(9 * 4096), 9, 4096, Type::kBFloat16);
  ASSERT_EQ(api.matmul(device.view, nothing.data(), 4096, Type::kBFloat16, product.sums_there.data(), 9,
                       product.y.data(), 16, Type::kFloat, nullptr, 1, nullptr),
            Status::kOk);
  const std::vector<float> y = product.y.values();
  double worst = 0;
  for (int64_t row = 0; row < 9; ++row) {
    for (int64_t out = 0; out < 16; ++out) {
      double sum = 0, size = 0;
      for (int64_t group = 0; group < 128; ++group) {
        const size_t place = weight.row_group(out, group);
        const double centred = weight.row_offsets[place] + weight.row_scales[place] * 8.0;
        const double term = centred * double{product.sums[static_cast<size_t>(row * 128 + group)]};
        sum += term, size += std::fabs(term);
      }
      worst = std::max(worst, std::fabs(y[static_cast<size_t>(row * 16 + out)] - sum) / size);
    }
  }
  EXPECT_LT(worst, 0x1p-16);  // one bf16 product alone is off by 2^-9 a term, two by 2^-10
}

KERNEL_CHECK(matmul, ARowsBitsDoNotDependOnItsNeighbours) {
  for (const int multiprocessors : {1, 8}) {
    const Weight weight({20, 1184, 32, 4});
    const DeviceWeight device(weight);
    const Product all(weight, device, 70, Type::kBFloat16, Type::kFloat, 0, 0, true);
    ASSERT_EQ(run(api, all, multiprocessors), Status::kOk);
    for (const auto& [begin, end] : {std::pair<int64_t, int64_t>{2, 13}, {40, 60}, {0, 33}}) {
      const Product some = all.part(begin, end);
      ASSERT_EQ(run(api, some, multiprocessors), Status::kOk);
      for (int64_t row = begin; row < end; ++row)
        ASSERT_EQ(all.row_bytes(row), some.row_bytes(row - begin)) << some.text();
    }
    EXPECT_NE(all.row_bytes(0), all.row_bytes(1));
  }
}

KERNEL_CHECK(matmul, KIsCutWhereThatIsWorthIt) {
  const auto parts = [&](int64_t out_features, int64_t in_features, int multiprocessors) {
    const int64_t bytes = api.matmul_workspace_bytes({out_features, in_features, 128, 4}, 10, multiprocessors);
    results.add(std::vector<int64_t>{bytes});
    return bytes == 0 ? 1 : bytes / (10 * out_features * 4);
  };
  EXPECT_EQ(parts(4096, 4096, 132), 8);   // 16 blocks: 128
  EXPECT_EQ(parts(12288, 4096, 132), 2);  // 48: 96; five parts would fill the rounds, and cost more than that saves
  EXPECT_EQ(parts(22016, 4096, 132), 1);  // 86
  EXPECT_EQ(parts(22016, 8192, 132), 3);  // 258 of 264, with k long enough
  EXPECT_EQ(parts(57344, 8192, 132), 1);  // 224 of 264
  EXPECT_EQ(parts(28672, 8192, 108), 4);  // 112 in two rounds become 448 in five
  EXPECT_EQ(parts(4096, 384, 132), 1);    // three tiles
}

KERNEL_CHECK(matmul, RefusesWhatItDoesNotTake) {
  const Weight weight({16, 1536, 32, 4});
  const DeviceWeight device(weight);
  const Product p(weight, device, 9, Type::kBFloat16, Type::kFloat, 0, 0, false);
  EXPECT_EQ(api.matmul_workspace_bytes(weight.shape, 9, 1), 0);
  EXPECT_EQ(api.matmul_workspace_bytes(weight.shape, 9, 8), 3 * 9 * 16 * 4);
  const auto run = [&](int64_t rows, int64_t x_stride, Type x_type, int multiprocessors) {
    return api.matmul(device.view, p.x_there.data(), x_stride, x_type, p.sums_there.data(), rows, p.y.data(), 16,
                      Type::kFloat, nullptr, multiprocessors, nullptr);
  };
  EXPECT_EQ(run(9, 1536, Type::kBFloat16, 1), Status::kOk);
  EXPECT_EQ(run(9, 1536, Type::kBFloat16, 8), Status::kBadArgument);
  EXPECT_EQ(run(9, 1536, Type::kFloat, 1), Status::kUnsupported);
  EXPECT_EQ(run(9, 1528, Type::kBFloat16, 1), Status::kBadArgument);
  EXPECT_EQ(run(0, 1536, Type::kBFloat16, 1), Status::kOk);
}

}  // namespace
}  // namespace qalora::test::cuda
