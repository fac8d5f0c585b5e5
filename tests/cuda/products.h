// A product of activations with a packed weight: what matvec and matmul are asked, and how far from the
// double-precision reference rounding may lead.
#pragma once

#include "cuda/tiled.h"

namespace qalora::test::cuda {

struct Product {
  const Weight& weight;
  const DeviceWeight& device;
  int64_t rows, x_stride, y_stride;
  Type x_type, y_type;
  std::vector<float> x, sums;  // [rows, in_features], exact in x_type; [rows, groups]
  Matrix x_there, y;
  Buffer<float> sums_there;

  // wild: sums that have nothing to do with x, so that the two parts of y cannot stand in for each other.
  Product(const Weight& weight, const DeviceWeight& device, int64_t rows, Type x_type, Type y_type, int64_t x_more,
          int64_t y_more, bool wild)
      : weight(weight),
        device(device),
        rows(rows),
        x_stride(weight.view.in_features + x_more),
        y_stride(weight.view.out_features + y_more),
        x_type(x_type),
        y_type(y_type),
        x(random_inputs(rows * weight.view.in_features, x_type)),
        sums(make_sums(wild)),
        x_there(x, rows, x_stride, x_type),
        y(rows, y_stride, y_type),
        sums_there(sums) {}

  std::string text() const {
    const TiledShape& shape = weight.shape;
    return Shape{shape.out_features, shape.in_features, shape.group_size, shape.bits}.text() + ", " +
           std::to_string(rows) + " rows of " + name_of(x_type) + " to " + name_of(y_type);
  }

  // Each term is rounded on its way through at most `roundings` additions; y once more. zero_error: of a product b_c *
  // sum, relative.
  void expect_right(double roundings, double zero_error) const {
    const PackedView& view = weight.view;
    const int64_t groups = view.groups();
    std::vector<double> wide(x.begin(), x.end()), pooled(sums.size()),
        expected(static_cast<size_t>(rows * view.out_features));
    kernels::reference::matmul(view, wide.data(), rows, expected.data());
    kernels::reference::pool(wide.data(), rows, view.in_features, view.group_size, kernels::reference::Pooling::kSum,
                             pooled.data());
    const double centre = 1 << (view.bits - 1);
    std::vector<double> tolerance;
    std::vector<float> actual;
    const std::vector<float> got = y.values();
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t out = 0; out < view.out_features; ++out) {
        double size = 0, zero = 0;  // sums of the terms' sizes
        double& value = expected[static_cast<size_t>(row * view.out_features + out)];
        for (int64_t k = 0; k < view.in_features; ++k) {
          const double scale = weight.row_scales[weight.row_group(out, k / view.group_size)];
          size += std::fabs(scale * (code_of(view, out, k) - centre) *
                            wide[static_cast<size_t>(row * view.in_features + k)]);
        }
        for (int64_t group = 0; group < groups; ++group) {
          const size_t place = weight.row_group(out, group), sum = static_cast<size_t>(row * groups + group);
          const double centred = weight.row_offsets[place] + weight.row_scales[place] * centre;
          value += centred * (sums[sum] - pooled[sum]);  // the reference has pooled x itself
          zero += std::fabs(centred * sums[sum]);
        }
        actual.push_back(got[static_cast<size_t>(row * y_stride + out)]);
        tolerance.push_back(0x1p-23 * roundings * (size + zero) + zero_error * zero +
                            1.001 * unit_roundoff(y_type) * std::fabs(value) + smallest(y_type));
      }
      for (int64_t k = view.out_features; k < y_stride; ++k) {
        ASSERT_TRUE(std::isnan(got[static_cast<size_t>(row * y_stride + k)]))
            << text() << ": written behind row " << row;
      }
    }
    expect_close(actual, expected, tolerance, text());
  }

  // Rows [begin, end) of x, alone.
  Product part(int64_t begin, int64_t end) const { return Product(*this, begin, end); }
  // y's bytes of row `row`.
  std::vector<unsigned char> row_bytes(int64_t row) const {
    const std::vector<unsigned char> all = y.bytes();
    const auto from = all.begin() + row * y_stride * bytes_of(y_type);
    return {from, from + weight.view.out_features * bytes_of(y_type)};
  }

 private:
  Product(const Product& other, int64_t begin, int64_t end)
      : weight(other.weight),
        device(other.device),
        rows(end - begin),
        x_stride(other.x_stride),
        y_stride(other.y_stride),
        x_type(other.x_type),
        y_type(other.y_type),
        x(cut(other.x, begin, end, weight.view.in_features)),
        sums(cut(other.sums, begin, end, weight.view.groups())),
        x_there(x, rows, x_stride, x_type),
        y(rows, y_stride, y_type),
        sums_there(sums) {}
  static std::vector<float> cut(const std::vector<float>& from, int64_t begin, int64_t end, int64_t width) {
    return {from.begin() + begin * width, from.begin() + end * width};
  }
  static std::vector<float> random_inputs(int64_t count, Type type) {
    Generator random(11);
    return decode(encode(random.uniforms(count, -1, 1), type), type);
  }
  std::vector<float> make_sums(bool wild) const {
    const PackedView& view = weight.view;
    Generator random(12);
    if (wild) return random.uniforms(rows * view.groups(), -3, 3);
    std::vector<double> wide(x.begin(), x.end()), pooled(static_cast<size_t>(rows * view.groups()));
    kernels::reference::pool(wide.data(), rows, view.in_features, view.group_size, kernels::reference::Pooling::kSum,
                             pooled.data());
    return {pooled.begin(), pooled.end()};
  }
};

}  // namespace qalora::test::cuda
