#include "cuda/rows.h"

namespace qalora::kernels::cuda::tests {

namespace {

// Beside a mean square of about 1e-5, so that its place matters.
constexpr float kEps = 1e-5f;
constexpr double kDeviation = 3e-3;

// Of a sum over a row: a thread adds its elements one after the other, a block the threads' sums in 10 steps; each
// addend is a product.
double sum_units(int64_t width) {
  const int64_t threads =
      std::min<int64_t>(rms_norm_shape(1, width, Pooling()).block.x, rms_norm_backward_shape(1, width).block.x);
  return static_cast<double>(tiles_over(width, 4 * threads) * 4 + 10 + 1);
}

struct Options {
  bool residual = true, in_place = false;
};

void check_norm(const Api& api, test::cuda::Results& results, const RowCase& c, const Options& options) {
  Checker checker(describe(c) + (options.residual ? " with a residual" : "") + (options.in_place ? " in place" : ""));
  const int64_t count = c.rows * c.width;
  Elements h(Type::kFloat, count, c.shift), residual(c.type, count, c.shift), sum(Type::kFloat, count, c.shift);
  Elements weight(Type::kFloat, c.width, c.shift), inverse(Type::kFloat, c.rows, c.shift);
  h.fill_normal(static_cast<uint64_t>(c.width), kDeviation, kDeviation / 3);
  residual.fill_normal(2, kDeviation);
  weight.fill_normal(3, 0.3, 1);
  std::vector<double> x(static_cast<size_t>(count));  // what is normed: one fp32 sum
  for (int64_t i = 0; i < count; ++i) x[i] = options.residual ? rounded(Type::kFloat, h[i] + residual[i]) : h[i];

  RowOutput rows(c);
  float* const from = h.floats();
  float* const to = !options.residual ? nullptr : options.in_place ? from : sum.floats();
  const void* const added = options.residual ? residual.data() : nullptr;
  void* const out = rows.out.data();
  EXPECT_EQ(api.rms_norm(from, added, to, weight.floats(), kEps, c.rows, c.width, c.type, out, c.stride(), rows.pool(),
                         inverse.floats(), nullptr),
            Status::kOk);
  rows.fetch(results);
  Elements& written = options.in_place ? h : sum;
  written.fetch(), inverse.fetch();
  results.add(written.bytes()), results.add(inverse.bytes());

  for (int64_t row = 0; row < c.rows; ++row) {
    double squares = 0;
    for (int64_t i = 0; i < c.width; ++i) squares += x[row * c.width + i] * x[row * c.width + i];
    const double exact = 1 / std::sqrt(squares / static_cast<double>(c.width) + kEps);
    // The sum, 1 / width, its product, the sum with eps, of which a root halves the error; rsqrtf is good to 2 ulp of
    // at most 2 units.
    const double relative = kFloatUnit * ((sum_units(c.width) + 3) / 2 + 4);
    checker.rounded_once(Type::kFloat, inverse[row], exact, exact * relative, "inverse", row, 0);
    for (int64_t i = 0; i < c.width; ++i) {
      const double normed = x[row * c.width + i] * exact * weight[i];
      checker.rounded_once(c.type, rows.at(row, i), normed, std::abs(normed) * (relative + 2 * kFloatUnit), "out", row,
                           i);
      if (options.residual) checker.same(written[row * c.width + i], x[row * c.width + i], "residual_out", row, i);
    }
  }
  rows.check_sums(checker);
  rows.check_pool_agrees(api, checker);
  checker.report();
}

void check_gradient(const Api& api, test::cuda::Results& results, const RowCase& c, bool through, bool in_place) {
  Checker checker(describe(c) + (through ? " with a gradient through" : "") + (in_place ? " in place" : ""));
  const int64_t count = c.rows * c.width;
  Elements dy(c.type, count, c.shift), h(Type::kFloat, count, c.shift), before(Type::kFloat, count),
      added(Type::kFloat, count, c.shift);
  Elements weight(Type::kFloat, c.width, c.shift), inverse(Type::kFloat, c.rows, c.shift),
      dh(Type::kFloat, count, c.shift);
  dy.fill_normal(1, 1, 0.1);
  h.fill_normal(2, 2, 0.5);
  for (Elements* each : {&before, &added}) each->fill_normal(3, 1);
  weight.fill_normal(4, 0.3, 1);
  for (int64_t row = 0; row < c.rows; ++row) inverse.set(row, 0.4 + 0.1 * static_cast<double>(row));
  float* const from = through ? added.floats() : nullptr;
  Elements& written = in_place ? added : dh;
  float* const to = in_place ? from : dh.floats();
  const void* const gradient = dy.data();
  EXPECT_EQ(api.rms_norm_backward(gradient, c.type, h.floats(), weight.floats(), inverse.floats(), from, c.rows,
                                  c.width, to, nullptr),
            Status::kOk);
  written.fetch();
  results.add(written.bytes());
  for (int64_t row = 0; row < c.rows; ++row) {
    const double r = inverse[row], width = static_cast<double>(c.width);
    const auto g = [&](int64_t i) { return dy[row * c.width + i] * weight[i]; };
    const auto n = [&](int64_t i) { return h[row * c.width + i] * r; };
    double mean = 0, size = 0;
    for (int64_t i = 0; i < c.width; ++i) mean += g(i) * n(i) / width, size += std::abs(g(i) * n(i)) / width;
    const double mean_error =
        kFloatUnit * ((sum_units(c.width) + 2) * size + 2 * std::abs(mean));  // g, n; 1 / width, its product
    for (int64_t i = 0; i < c.width; ++i) {
      const double rest = through ? before[row * c.width + i] : 0, exact = r * (g(i) - n(i) * mean) + rest;
      // g; n, its product with the mean; their difference; the product with r; the sum, which is the one rounding of
      // the output
      const double error =
          r * (std::abs(g(i)) * 3 * kFloatUnit + std::abs(n(i)) * (mean_error + 4 * kFloatUnit * std::abs(mean)));
      checker.rounded_once(Type::kFloat, written[row * c.width + i], exact, error, "dh", row, i);
    }
  }
  checker.report();
}

}  // namespace

KERNEL_CHECK(rms_norm, NormsAndPools) {
  for (const Type type : kAllTypes) {
    for (const RowCase& c : row_cases(type)) {
      check_norm(api, results, c, {.residual = true, .in_place = c.rows == 3});
      if (c.width < 1000) check_norm(api, results, c, {.residual = false});
    }
  }
}

// More than the registers of the largest block hold.
KERNEL_CHECK(rms_norm, TakesLongRows) {
  check_norm(api, results, {Type::kBFloat16, 1, 16384 + 96, 96, true}, {.residual = true});
  check_norm(api, results, {Type::kBFloat16, 1, 16384 + 4128, 64}, {.residual = false});
  check_gradient(api, results, {Type::kHalf, 1, 16384 + 96}, true, false);
}

KERNEL_CHECK(rms_norm, HasItsGradient) {
  for (const Type type : kAllTypes) {
    const RowCase unaligned = {type, 2, 288, 0, false, false, 0, /*shift=*/1};
    for (const RowCase& c : {RowCase{type, 3, 32}, RowCase{type, 2, 416}, RowCase{type, 1, 4128}, unaligned}) {
      check_gradient(api, results, c, false, false);
      check_gradient(api, results, c, true, c.rows == 2);
    }
  }
}

KERNEL_CHECK(rms_norm, RefusesHalfAResidual) {
  Elements h(Type::kFloat, 32), out(Type::kHalf, 32);
  float* const data = h.floats();
  void* const to = out.data();
  EXPECT_EQ(api.rms_norm(data, to, nullptr, data, kEps, 1, 32, Type::kHalf, to, 32, {}, data, nullptr),
            Status::kBadArgument);
  EXPECT_EQ(api.rms_norm(data, nullptr, data, data, kEps, 1, 32, Type::kHalf, to, 32, {}, data, nullptr),
            Status::kBadArgument);
  EXPECT_EQ(api.rms_norm(data, nullptr, nullptr, data, kEps, 1, 24, Type::kHalf, to, 32, {}, data, nullptr),
            Status::kUnsupported);
  EXPECT_EQ(api.rms_norm(data, nullptr, nullptr, data, kEps, 1, 32, Type::kHalf, to, 31, {}, data, nullptr),
            Status::kBadArgument);
}

}  // namespace qalora::kernels::cuda::tests
