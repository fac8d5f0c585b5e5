// Panels of dense weights: kWhole to the CPU's bits, kConcat within derived tolerances.
#include <gtest/gtest.h>

#include "cuda/tiled.h"

namespace qalora::kernels::cuda {
namespace {

constexpr unsigned char kFill = 0xA5;

struct Case {
  Shape shape;
  int64_t row_begin, row_end, more;  // stride = width + more
};

// Whole matrices and slabs of rows; tails of rows and inputs; quads that are not full; rows that are not 16-byte aligned (odd strides).
std::vector<Case> cases() {
  std::vector<Case> all;
  for (const int bits : {2, 3, 4}) {
    all.push_back({{32, 256, 32, bits}, 0, 32, 0});
    all.push_back({{37, 160, 32, bits}, 16, 37, 8});
    all.push_back({{16, 416, 64, bits}, 0, 9, 3});
    all.push_back({{50, 672, 96, bits}, 32, 41, 64});
    all.push_back({{20, 640, 256, bits}, 0, 20, 0});
    all.push_back({{17, 288, 288, bits}, 16, 17, 1});
    all.push_back({{5, 32, 128, bits}, 0, 5, 0});
  }
  return all;
}

std::string place(const Case& c, Type type, int64_t row, int64_t column) {
  return c.shape.text() + " " + name_of(type) + ": row " + std::to_string(row) + " column " + std::to_string(column);
}

Status run(const Api& api, const Weight& weight, const Case& c, Panel panel, Matrix& out) {
  return api.dequantize(weight.tiled, c.row_begin, c.row_end, panel, out.type, out.data(), out.stride, nullptr);
}

// The CPU's own rows, bit for bit; fp16 (which the CPU has not) as one rounding of the CPU's fp32.
std::string check_whole(const Api& api) {
  for (const Case& c : cases()) {
    const Weight weight(c.shape);
    const int64_t rows = c.row_end - c.row_begin, width = c.shape.in_features;
    std::vector<float> dense(static_cast<size_t>(rows * width));
    std::vector<uint16_t> half(dense.size());
    if (dequantize_rows(weight.view, c.row_begin, c.row_end, dense.data()) != Status::kOk) return "the CPU refused";
    if (dequantize_rows_bf16(weight.view, c.row_begin, c.row_end, half.data()) != Status::kOk) return "the CPU refused";
    for (const Type type : {Type::kFloat, Type::kBFloat16, Type::kHalf}) {
      Matrix out(rows, width + c.more, type, kFill), expected(rows, width + c.more, type, kFill);
      if (run(api, weight, c, Panel::kWhole, out) != Status::kOk) return c.shape.text() + ": refused";
      for (int64_t row = 0; row < rows; ++row) {
        for (int64_t k = 0; k < width; ++k) {
          expected.set(row, k, type == Type::kBFloat16 ? static_cast<float>(widened(half[static_cast<size_t>(row * width + k)], type))
                                                       : dense[static_cast<size_t>(row * width + k)]);
        }
      }
      const int64_t byte = first_difference(out.bytes, expected.bytes);
      if (byte >= 0) return place(c, type, byte / bytes_of(type) / out.stride, byte / bytes_of(type) % out.stride);
    }
  }
  return "";
}

std::string check_concat(const Api& api) {
  for (const Case& c : cases()) {
    const Weight weight(c.shape);
    const int64_t rows = c.row_end - c.row_begin, inputs = c.shape.in_features, groups = weight.view.groups();
    const int64_t width = inputs + 2 * groups;
    const int centre = 1 << (c.shape.bits - 1);
    for (const Type type : {Type::kFloat, Type::kBFloat16, Type::kHalf}) {
      Matrix out(rows, width + c.more, type, kFill);
      if (run(api, weight, c, Panel::kConcat, out) != Status::kOk) return c.shape.text() + ": refused";
      for (int64_t row = 0; row < rows; ++row) {
        const int64_t from = c.row_begin + row;
        for (int64_t k = 0; k < inputs; ++k) {
          const double scale = weight.row_scales[weight.row_group(from, k / c.shape.group_size)];
          const double expected = scale * (code_of(weight.view, from, k) - centre);
          // One rounding to fp32, one to the type.
          const double tolerance = std::fabs(expected) * (0x1p-24 + 1.001 * half_ulp(type)) + smallest(type);
          if (!(std::fabs(out.at(row, k) - expected) <= tolerance)) return place(c, type, row, k);
        }
        for (int64_t group = 0; group < groups; ++group) {
          const double scale = weight.row_scales[weight.row_group(from, group)];
          const double centred = weight.row_offsets[weight.row_group(from, group)] + scale * centre;
          const double first = out.at(row, inputs + group), rest = out.at(row, inputs + groups + group);
          if (!(std::fabs(first - centred) <= std::fabs(centred) * (0x1p-24 + 1.001 * half_ulp(type)) + smallest(type))) {
            return place(c, type, row, inputs + group);
          }
          // Together they keep twice the type's bits, fp32's at most.
          const double both = std::fabs(centred) * (0x1p-24 + 1.001 * half_ulp(type) * half_ulp(type)) + smallest(type);
          if (!(std::fabs(first + rest - centred) <= both)) return place(c, type, row, inputs + groups + group);
        }
        for (int64_t k = width; k < out.stride; ++k) {
          if (!out.untouched(row, k, kFill)) return place(c, type, row, k) + " written behind the row";
        }
      }
    }
  }
  return "";
}

TEST(DequantizeOnDevice, WholePanelsHaveTheCpusBits) { EXPECT_EQ(check_whole(api()), ""); }
TEST(DequantizeOnDevice, ConcatenatedPanelsKeepTheOffsets) { EXPECT_EQ(check_concat(api()), ""); }

TEST(DequantizeOnDevice, RefusesWhatItCannotWrite) {
  const Weight weight({20, 128, 32, 4});
  Matrix out(20, 128 + 8, Type::kBFloat16);
  const auto run = [&](int64_t begin, int64_t end, Panel panel, int64_t stride) {
    return api().dequantize(weight.tiled, begin, end, panel, Type::kBFloat16, out.data(), stride, nullptr);
  };
  EXPECT_EQ(run(0, 20, Panel::kWhole, 128), Status::kOk);
  EXPECT_EQ(run(0, 20, Panel::kConcat, 136), Status::kOk);
  EXPECT_EQ(run(16, 16, Panel::kWhole, 128), Status::kOk);
  EXPECT_EQ(run(8, 20, Panel::kWhole, 128), Status::kBadArgument);
  EXPECT_EQ(run(0, 21, Panel::kWhole, 128), Status::kBadArgument);
  EXPECT_EQ(run(0, 20, Panel::kConcat, 135), Status::kBadArgument);
  EXPECT_EQ(run(0, 20, Panel::kWhole, 127), Status::kBadArgument);
}

}  // namespace
}  // namespace qalora::kernels::cuda
