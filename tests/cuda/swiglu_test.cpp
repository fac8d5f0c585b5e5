#include "cuda/rows.h"

namespace qalora::kernels::cuda::tests {

namespace {

double sigmoid(double g) { return 1 / (1 + std::exp(-g)); }

// Relative error of the kernels' sigmoid: an exponential good to 4 + 2.4 |g| units (2^-22 of ex2.approx by the PTX
// manual; its argument's product and constant are rounded), as far as it matters in 1 + e; that sum; a quotient good to
// 2 ulp, of two units at most.
double sigmoid_error(double g) { return kFloatUnit * ((1 - sigmoid(g)) * (4 + 2.4 * std::abs(g)) + 1 + 4); }
constexpr double kFlushed = 0x1p-125;  // where exp(-g) leaves the range, the sigmoid is 0

// Normal, and what is special about an exponential.
void fill_gate(Elements& gate, uint64_t seed) {
  gate.fill_normal(seed, 3);
  const double specials[] = {0, -0.0, 1e-6, -20, 20, -60, 60, -100, 100, -3e4, 3e4};
  for (size_t i = 0; i < std::size(specials); ++i) gate.set(static_cast<int64_t>(i) * 7 % gate.size(), specials[i]);
}

struct Operands {
  Elements gate, up;

  explicit Operands(const RowCase& c) : gate(c.type, c.rows * c.width, c.shift), up(c.type, c.rows * c.width, c.shift) {
    fill_gate(gate, static_cast<uint64_t>(c.width));
    up.fill_normal(static_cast<uint64_t>(c.width + 1), 1);
  }
};

}  // namespace

KERNEL_CHECK(swiglu, IsRoundedOnce) {
  for (const Type type : kAllTypes) {
    for (const RowCase& c : row_cases(type)) {
      Checker checker(describe(c));
      Operands in(c);
      RowOutput rows(c);
      const void *gate = in.gate.data(), *up = in.up.data();
      void* const out = rows.out.data();
      EXPECT_EQ(api.swiglu(gate, up, type, c.rows, c.width, out, c.stride(), rows.pool(), nullptr), Status::kOk);
      rows.fetch(results);
      for (int64_t row = 0; row < c.rows; ++row) {
        for (int64_t i = 0; i < c.width; ++i) {
          const double g = in.gate[row * c.width + i], u = in.up[row * c.width + i], exact = g * sigmoid(g) * u;
          const double error = std::abs(exact) * (sigmoid_error(g) + 2 * kFloatUnit) + kFlushed * std::abs(g * u);
          checker.rounded_once(type, rows.at(row, i), exact, error, "out", row, i);
        }
      }
      rows.check_sums(checker);
      rows.check_pool_agrees(api, checker);
      checker.report();
    }
  }
}

KERNEL_CHECK(swiglu, GradientIsRoundedOnce) {
  for (const Type type : kAllTypes) {
    for (const RowCase& c :
         {RowCase{type, 2, 32}, RowCase{type, 3, 416}, RowCase{type, 1, 2080, 0, false, false, 0, 1}}) {
      for (const bool in_place : {false, true}) {
        Checker checker(describe(c));
        Operands in(c);
        const Operands kept(c);
        const int64_t count = c.rows * c.width;
        Elements dout(type, count, c.shift), dgate(type, count, c.shift), dup(type, count, c.shift);
        dout.fill_normal(5, 1);
        Elements &to_gate = in_place ? in.gate : dgate, &to_up = in_place ? in.up : dup;
        const void *d = dout.data(), *gate = in.gate.data(), *up = in.up.data();
        void* const gate_out = in_place ? const_cast<void*>(gate) : dgate.data();
        void* const up_out = in_place ? const_cast<void*>(up) : dup.data();
        EXPECT_EQ(api.swiglu_backward(d, gate, up, type, c.rows, c.width, gate_out, up_out, nullptr), Status::kOk);
        to_gate.fetch(), to_up.fetch();
        results.add(to_gate.bytes()), results.add(to_up.bytes());
        for (int64_t i = 0; i < count; ++i) {
          const double g = kept.gate[i], u = kept.up[i], s = sigmoid(g), silu = g * s, relative = sigmoid_error(g);
          const double flushed = kFlushed * std::abs(dout[i]) * (1 + std::abs(g));
          const double up_error = std::abs(dout[i] * silu) * (relative + 2 * kFloatUnit) + flushed;
          checker.rounded_once(type, to_up[i], dout[i] * silu, up_error, "dup", 0, i);
          // s + silu (1 - s), each term with the sigmoid's error in every factor and up to five roundings, 1 - s with
          // those of s
          const double rest = silu * (1 - s);
          const double error = std::abs(s) * (relative + 4 * kFloatUnit) +
                               std::abs(rest) * (relative + 6 * kFloatUnit) + std::abs(silu) * s * relative + flushed;
          checker.rounded_once(type, to_gate[i], dout[i] * u * (s + rest), std::abs(dout[i] * u) * error + flushed,
                               "dgate", 0, i);
        }
        checker.report();
      }
    }
  }
}

KERNEL_CHECK(swiglu, ANanStaysWhereItIs) {
  const RowCase c = {Type::kHalf, 1, 64, 32};
  Operands in(c);
  in.gate.fill(1).set(3, NAN);
  in.up.fill(1).set(5, NAN);
  RowOutput rows(c);
  const void *gate = in.gate.data(), *up = in.up.data();
  void* const out = rows.out.data();
  EXPECT_EQ(api.swiglu(gate, up, c.type, 1, 64, out, 64, rows.pool(), nullptr), Status::kOk);
  rows.fetch(results);
  for (int64_t i = 0; i < 64; ++i) EXPECT_EQ(std::isnan(rows.at(0, i)), i == 3 || i == 5) << i;
  EXPECT_TRUE(std::isnan(rows.sums[0]));
  EXPECT_FALSE(std::isnan(rows.sums[1]));
}

}  // namespace qalora::kernels::cuda::tests
