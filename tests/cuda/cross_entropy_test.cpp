#include "cuda/rows.h"

namespace qalora::kernels::cuda::tests {

namespace {

struct EntropyCase {
  Type type;
  int64_t vocab, spare = 0, shift = 0;
  int64_t rows = 6;
};

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Row 0: like a model's; 1: huge numbers of both signs; 2: some are -inf; 3: all equal; 4: like 0, the target last; 5:
// the largest last.
void fill_logits(Elements& logits, const EntropyCase& c) {
  const int64_t stride = c.vocab + c.spare;
  logits.fill_normal(static_cast<uint64_t>(c.vocab), 3);
  for (int64_t row = 0; row < c.rows; ++row) {
    for (int64_t i = 0; i < c.vocab; ++i) {
      const int64_t at = row * stride + i;
      if (row == 1) logits.set(at, logits[at] * (c.type == Type::kHalf ? 4e3 : 1e5));
      if (row == 2 && i % 3 == 1) logits.set(at, -kInfinity);
      if (row == 3) logits.set(at, -12.5);
    }
    for (int64_t i = c.vocab; i < stride; ++i) logits.set(row * stride + i, kUntouched);
    if (row == 5) logits.set(row * stride + c.vocab - 1, 40);
  }
}

int64_t target_of(int64_t row, int64_t vocab) { return row == 4 ? vocab - 1 : row * 5 % vocab; }

struct Reference {
  double loss, loss_error, sum, sum_error, largest;  // sum_error is relative
};

// In the kernel a term of the sum, exp(logit - largest), is made of an exponential of a rounded difference and of one
// more exponential at each change of what is largest so far; all their arguments add up to that difference. An
// exponential of -d is good to 4 + 2.4 d units (see swiglu_test.cpp), its rounded argument adds d. A thread sees its
// part of the row's chunks, a block merges twice in 5 steps.
Reference exact_loss(const std::vector<double>& logits, int64_t target, Type type) {
  const int64_t vocab = static_cast<int64_t>(logits.size()), threads = cross_entropy_shape(1, vocab, type).block.x;
  const double parts = static_cast<double>(tiles_over(vocab, vector_elements(type) * threads));
  Reference r{};
  r.largest = *std::max_element(logits.begin(), logits.end());
  double weighted = 0;
  for (const double logit : logits) {
    const double distance = r.largest - logit, term = std::exp(-distance);
    r.sum += term;
    if (term > 0) weighted += term * (4 + 3.4 * distance);
  }
  r.sum_error = kFloatUnit * (weighted / r.sum + 6 * (parts + 2) + 8 + 10);
  r.loss = std::log(r.sum) + (r.largest - logits[target]);
  r.loss_error = r.sum_error + kFloatUnit * (2 * std::abs(std::log(r.sum)) + std::abs(r.largest - logits[target]));
  return r;
}

void check_entropy(const Api& api, test::cuda::Results& results, const EntropyCase& c, bool gradient) {
  std::ostringstream where;
  where << test::cuda::name_of(c.type) << " vocabulary of " << c.vocab << ", stride " << c.vocab + c.spare << ", shift "
        << c.shift;
  Checker checker(where.str());
  const int64_t stride = c.vocab + c.spare;
  Elements logits(c.type, c.rows * stride, c.shift), before(c.type, c.rows * stride),
      losses(Type::kFloat, c.rows, c.shift);
  fill_logits(logits, c);
  fill_logits(before, c);
  std::vector<int64_t> wanted;
  for (int64_t row = 0; row < c.rows; ++row) wanted.push_back(target_of(row, c.vocab));
  const test::cuda::Buffer<int64_t> targets(wanted);
  void* const data = logits.data();
  EXPECT_EQ(
      api.cross_entropy(data, c.type, stride, targets.data(), c.rows, c.vocab, gradient, losses.floats(), nullptr),
      Status::kOk);
  logits.fetch(), losses.fetch();
  results.add(logits.bytes()), results.add(losses.bytes());
  for (int64_t row = 0; row < c.rows; ++row) {
    std::vector<double> values;
    for (int64_t i = 0; i < c.vocab; ++i) values.push_back(before[row * stride + i]);
    const Reference exact = exact_loss(values, wanted[row], c.type);
    checker.rounded_once(Type::kFloat, losses[row], exact.loss, exact.loss_error, "loss", row, 0);
    for (int64_t i = 0; i < stride; ++i) {
      if (i >= c.vocab || !gradient) {
        checker.same(logits[row * stride + i], before[row * stride + i], "untouched", row, i);
        continue;
      }
      const double distance = exact.largest - values[i], p = std::exp(-distance) / exact.sum;
      // One exponential, the quotient by the sum, its product; below 2^-126 the exponential is 0.
      const double error = (p == 0 ? 0 : p * (kFloatUnit * (4 + 3.4 * distance + 2) + exact.sum_error)) + 0x1p-126;
      checker.rounded_once(c.type, logits[row * stride + i], p - (i == wanted[row] ? 1 : 0), error, "gradient", row, i);
    }
  }
  checker.report();
}

}  // namespace

KERNEL_CHECK(cross_entropy, LossAndGradient) {
  for (const Type type : kAllTypes) {
    for (const bool gradient : {true, false}) {
      for (const int64_t vocab : {1, 7, 8, 1000, 1001}) check_entropy(api, results, {type, vocab}, gradient);
      check_entropy(api, results, {type, 1001, /*spare=*/7}, gradient);  // vectors with a tail
      check_entropy(api, results, {type, 520, 8, /*shift=*/1}, gradient);
    }
  }
}

// More than a block keeps in registers.
KERNEL_CHECK(cross_entropy, TakesALargeVocabulary) {
  for (const Type type : kAllTypes) check_entropy(api, results, {type, 32000 + 13, 3, 0, 1}, true);
}

KERNEL_CHECK(cross_entropy, ANanIsSeen) {
  for (const double bad : {static_cast<double>(NAN), kInfinity}) {
    for (const int64_t where : {0, 99, 299}) {
      Elements logits(Type::kBFloat16, 2 * 300), losses(Type::kFloat, 2);
      logits.fill_normal(1, 1).set(where, bad);
      const test::cuda::Buffer<int64_t> targets(std::vector<int64_t>{7, 7});
      void* const data = logits.data();
      EXPECT_EQ(api.cross_entropy(data, Type::kBFloat16, 300, targets.data(), 2, 300, true, losses.floats(), nullptr),
                Status::kOk);
      losses.fetch(), logits.fetch();
      EXPECT_TRUE(std::isnan(losses[0])) << bad << " at " << where;
      EXPECT_TRUE(std::isnan(logits[where])) << bad << " at " << where;
      EXPECT_TRUE(std::isfinite(losses[1]) && std::isfinite(logits[300 + where]));
    }
  }
}

KERNEL_CHECK(cross_entropy, ATargetOutsideHasNoLoss) {
  Elements logits(Type::kHalf, 3 * 64), losses(Type::kFloat, 3);
  logits.fill_normal(1, 1);
  const test::cuda::Buffer<int64_t> targets(std::vector<int64_t>{-100, 64, (int64_t{1} << 32) + 3});
  void* const data = logits.data();
  EXPECT_EQ(api.cross_entropy(data, Type::kHalf, 64, targets.data(), 3, 64, false, losses.floats(), nullptr),
            Status::kOk);
  losses.fetch();
  for (int64_t row = 0; row < 3; ++row) EXPECT_TRUE(std::isnan(losses[row])) << row;
}

KERNEL_CHECK(cross_entropy, RefusesWhatItCannotDo) {
  Elements logits(Type::kHalf, 64), losses(Type::kFloat, 1);
  const test::cuda::Buffer<int64_t> targets(std::vector<int64_t>{0});
  void* const data = logits.data();
  EXPECT_EQ(api.cross_entropy(data, Type::kHalf, 64, targets.data(), 0, 64, true, losses.floats(), nullptr),
            Status::kOk);
  EXPECT_EQ(api.cross_entropy(data, Type::kHalf, 63, targets.data(), 1, 64, true, losses.floats(), nullptr),
            Status::kBadArgument);
  EXPECT_EQ(api.cross_entropy(data, Type::kHalf, 64, targets.data(), 1, 0, true, losses.floats(), nullptr),
            Status::kBadArgument);
}

}  // namespace qalora::kernels::cuda::tests
