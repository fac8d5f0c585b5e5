#include "cuda/rows.h"

namespace qalora::kernels::cuda::tests {

namespace {

void check_pool(const Api& api, test::cuda::Results& results, const RowCase& c) {
  Checker checker(describe(c));
  RowOutput rows(c);
  Elements x(c.type, c.rows * c.width);
  x.fill_normal(static_cast<uint64_t>(c.width), 1);
  for (int64_t row = 0; row < c.rows; ++row) {
    for (int64_t i = 0; i < c.width; ++i) rows.out.set(row * c.stride() + i, x[row * c.width + i]);
  }
  void* const device = rows.out.data();
  EXPECT_EQ(api.pool(device, c.stride(), c.type, c.rows, c.width, rows.pool(), nullptr), Status::kOk);
  rows.fetch(results);
  rows.check_sums(checker);
  for (int64_t row = 0; row < c.rows; ++row) {
    for (int64_t i = 0; i < c.width; ++i) checker.same(rows.at(row, i), x[row * c.width + i], "x", row, i);
  }
  checker.report();
}

}  // namespace

KERNEL_CHECK(pool, IsTheSumOfEachGroup) {
  for (const Type type : kAllTypes) {
    for (const RowCase& c : row_cases(type)) check_pool(api, results, c);
  }
}

// One block for a row of more groups than it has warps, and groups of more than 32 sums of 32.
KERNEL_CHECK(pool, TakesLongRows) {
  check_pool(api, results, {Type::kBFloat16, 1, 16384, 1056, true, true, 6});
  check_pool(api, results, {Type::kFloat, 1, 20000 - 32, 20000 - 32});
}

// The difference of two sums of almost equal groups must be that of the elements: nothing is rounded to 16 bits on the
// way.
KERNEL_CHECK(pool, AddsInSinglePrecision) {
  for (const Type type : test::cuda::kHalfTypes) {
    RowOutput rows({type, 1, 256, 128});
    rows.out.fill(1);
    rows.out.set(0, rounded(type, 1 + 2 * test::cuda::unit_roundoff(type)));
    void* const device = rows.out.data();
    EXPECT_EQ(api.pool(device, 256, type, 1, 256, rows.pool(), nullptr), Status::kOk);
    rows.fetch(results);
    EXPECT_EQ(rows.sums[0] - rows.sums[1], 2 * test::cuda::unit_roundoff(type));
  }
}

KERNEL_CHECK(pool, ANanStaysInItsGroup) {
  RowOutput rows({Type::kBFloat16, 1, 384, 96});
  rows.out.fill(2).set(100, NAN);
  void* const device = rows.out.data();
  EXPECT_EQ(api.pool(device, 384, Type::kBFloat16, 1, 384, rows.pool(), nullptr), Status::kOk);
  rows.fetch(results);
  for (int64_t group = 0; group < 4; ++group) {
    EXPECT_EQ(std::isnan(rows.sums[group]), group == 1);
    if (group != 1) {
      EXPECT_EQ(rows.sums[group], 192);
    }
  }
}

KERNEL_CHECK(pool, RefusesWhatItCannotDo) {
  const auto status = [&](int64_t stride, int64_t rows, int64_t width, int64_t group_size, bool columns) {
    Elements x(Type::kBFloat16, std::max<int64_t>(1, rows * stride));
    Elements sums(Type::kFloat, std::max<int64_t>(1, rows * width / 32));
    PoolOutput pool;
    pool.sums = sums.floats(), pool.group_size = group_size, pool.columns = columns;
    return api.pool(x.data(), stride, Type::kBFloat16, rows, width, pool, nullptr);
  };
  EXPECT_EQ(status(64, 2, 64, 32, false), Status::kOk);
  EXPECT_EQ(status(64, 0, 64, 32, false), Status::kOk);
  EXPECT_EQ(status(68, 2, 64, 32, true), Status::kOk);
  EXPECT_EQ(status(67, 2, 64, 32, true), Status::kBadArgument);
  EXPECT_EQ(status(63, 2, 64, 32, false), Status::kBadArgument);
  EXPECT_EQ(status(64, 2, 64, 0, false), Status::kBadArgument);
  EXPECT_EQ(status(64, 2, 64, 48, false), Status::kUnsupported);
  EXPECT_EQ(status(80, 2, 80, 32, false), Status::kUnsupported);
}

}  // namespace qalora::kernels::cuda::tests
