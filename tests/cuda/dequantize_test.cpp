// Panels of dense weights: kWhole to the CPU's bits, kConcat within derived tolerances.
#include "cuda/tiled.h"

namespace qalora::test::cuda {
namespace {

struct Case {
  Shape shape;
  int64_t row_begin, row_end, more;  // stride = width + more
  int64_t rows() const { return row_end - row_begin; }
};

// Whole matrices and slabs of rows; tails of rows and inputs; quads that are not full; rows that are not 16-byte
// aligned (odd strides).
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

void run(const Api& api, const DeviceWeight& weight, const Case& c, Panel panel, const Matrix& out) {
  ASSERT_EQ(api.dequantize(weight.view, c.row_begin, c.row_end, panel, out.type, out.data(), out.stride, nullptr),
            Status::kOk);
}

// The CPU's rows, [rows, stride]; what lies behind a row stays as it was.
std::vector<unsigned char> cpu_rows(const Weight& weight, const Case& c, const Matrix& out) {
  const int64_t width = c.shape.in_features;
  std::vector<float> dense(static_cast<size_t>(c.rows() * width));
  std::vector<uint16_t> half(dense.size());
  EXPECT_EQ(kernels::dequantize_rows(weight.view, c.row_begin, c.row_end, dense.data()), Status::kOk);
  EXPECT_EQ(kernels::dequantize_rows_bf16(weight.view, c.row_begin, c.row_end, half.data()), Status::kOk);
  if (out.type == Type::kHalf) {  // which the CPU has not: one rounding of its fp32
    for (size_t i = 0; i < half.size(); ++i) half[i] = to_bits(dense[i], Type::kHalf);
  }
  const int64_t size = bytes_of(out.type);
  const auto* from = out.type == Type::kFloat ? reinterpret_cast<const unsigned char*>(dense.data())
                                              : reinterpret_cast<const unsigned char*>(half.data());
  std::vector<unsigned char> rows(static_cast<size_t>(c.rows() * out.stride * size), 0xff);
  for (int64_t row = 0; row < c.rows(); ++row) {
    std::memcpy(rows.data() + row * out.stride * size, from + row * width * size, static_cast<size_t>(width * size));
  }
  return rows;
}

KERNEL_CHECK(dequantize, WholePanelsHaveTheCpusBits) {
  for (const Case& c : cases()) {
    const Weight weight(c.shape);
    const DeviceWeight device(weight);
    for (const Type type : kAllTypes) {
      const Matrix out(c.rows(), c.shape.in_features + c.more, type);
      ASSERT_NO_FATAL_FAILURE(run(api, device, c, Panel::kWhole, out));
      results.add(out.bytes());
      const int64_t byte = first_difference(out.bytes(), cpu_rows(weight, c, out));
      ASSERT_EQ(byte, -1) << c.shape.text() << " " << name_of(type) << ": row " << byte / bytes_of(type) / out.stride
                          << " column " << byte / bytes_of(type) % out.stride;
    }
  }
}

// What a row of a kConcat panel should hold, and how far from it rounding may lead.
struct Expected {
  std::vector<float> actual;
  std::vector<double> value, tolerance;
  void add(double got, double wanted, double relative, Type type) {
    actual.push_back(static_cast<float>(got)), value.push_back(wanted);
    tolerance.push_back(std::fabs(wanted) * (0x1p-23 + 1.001 * relative) + smallest(type));
  }
};

KERNEL_CHECK(dequantize, ConcatenatedPanelsKeepTheOffsets) {
  for (const Case& c : cases()) {
    const Weight weight(c.shape);
    const DeviceWeight device(weight);
    const int64_t inputs = c.shape.in_features, groups = weight.view.groups(), width = inputs + 2 * groups;
    const int centre = 1 << (c.shape.bits - 1);
    for (const Type type : kAllTypes) {
      const Matrix out(c.rows(), width + c.more, type);
      ASSERT_NO_FATAL_FAILURE(run(api, device, c, Panel::kConcat, out));
      results.add(out.bytes());
      const std::vector<float> values = out.values();
      const double ulp = unit_roundoff(type);
      Expected inputs_part, first, both;
      for (int64_t row = 0; row < c.rows(); ++row) {
        const int64_t from = c.row_begin + row;
        const float* got = values.data() + row * out.stride;
        for (int64_t k = 0; k < inputs; ++k) {
          const double scale = weight.row_scales[weight.row_group(from, k / c.shape.group_size)];
          inputs_part.add(got[k], scale * (code_of(weight.view, from, k) - centre), ulp, type);
        }
        for (int64_t group = 0; group < groups; ++group) {
          const size_t place = weight.row_group(from, group);
          const double centred = weight.row_offsets[place] + double{weight.row_scales[place]} * centre;
          first.add(got[inputs + group], centred, ulp, type);
          both.add(double{got[inputs + group]} + got[inputs + groups + group], centred, ulp * ulp,
                   type);  // twice the bits, fp32's at most
        }
        for (int64_t k = width; k < out.stride; ++k) ASSERT_TRUE(std::isnan(got[k])) << "written behind the row";
      }
      const std::string what = c.shape.text() + " " + name_of(type);
      expect_close(inputs_part.actual, inputs_part.value, inputs_part.tolerance, what + ", s (q - c)");
      expect_close(first.actual, first.value, first.tolerance, what + ", b_c");
      expect_close(both.actual, both.value, both.tolerance, what + ", b_c and the rest");
    }
  }
}

KERNEL_CHECK(dequantize, RefusesWhatItCannotWrite) {
  const Weight weight({20, 128, 32, 4});
  const DeviceWeight device(weight);
  const Matrix out(20, 128 + 8, Type::kBFloat16);
  const auto run = [&](int64_t begin, int64_t end, Panel panel, int64_t stride) {
    return api.dequantize(device.view, begin, end, panel, Type::kBFloat16, out.data(), stride, nullptr);
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
}  // namespace qalora::test::cuda
