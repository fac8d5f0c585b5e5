// For the tests of the kernels that walk rows: device memory that ends where it should, and what a number may be after
// one rounding.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <iomanip>
#include <limits>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "cuda/support.h"
#include "kernels/cuda/elementwise.h"

namespace qalora::kernels::cuda::tests {

using test::cuda::kAllTypes;

constexpr double kFloatUnit = 0x1p-24;  // unit roundoff of fp32

// The nearest number of `type`, ties to even; by the definition of a floating-point format alone.
inline double rounded(Type type, double value) {
  if (!std::isfinite(value) || value == 0) return value;
  const int precision = type == Type::kFloat      ? 24
                        : type == Type::kBFloat16 ? 8
                                                  : 11,
            smallest = type == Type::kHalf ? -14 : -126;
  const double largest = type == Type::kHalf ? 65504 : type == Type::kFloat ? 0x1.fffffep127 : 0x1.fep127;
  const int exponent = std::max(std::ilogb(value), smallest);
  const double quantum = std::ldexp(1.0, exponent - precision + 1), result = std::nearbyint(value / quantum) * quantum;
  return std::abs(result) > largest ? std::copysign(std::numeric_limits<double>::infinity(), value) : result;
}

// `count` elements of `type` on the device, in memory of exactly their size, with a copy here. `shift` elements of
// nothing before them spoil the alignment.
class Elements {
 public:
  Elements(Type type, int64_t count, int64_t shift = 0)
      : type_(type),
        bytes_(static_cast<size_t>(count * bytes_of(type))),
        device_(count * bytes_of(type), shift * bytes_of(type)) {}

  int64_t size() const { return static_cast<int64_t>(bytes_.size()) / bytes_of(type_); }
  const std::vector<unsigned char>& bytes() const { return bytes_; }

  // What was set is on the device from here on.
  void* data() {
    device_.upload(bytes_);
    return device_.data();
  }
  float* floats() { return static_cast<float*>(data()); }
  void fetch() { bytes_ = device_.download(); }

  double operator[](int64_t i) const {
    const unsigned char* at = bytes_.data() + i * bytes_of(type_);
    if (type_ == Type::kFloat) return load<float>(at);
    return test::cuda::to_float(load<uint16_t>(at), type_);
  }

  void set(int64_t i, double value) {
    unsigned char* at = bytes_.data() + i * bytes_of(type_);
    const float single = static_cast<float>(rounded(type_, value));  // exact: of a type no wider than f32
    if (type_ == Type::kFloat) {
      memcpy(at, &single, sizeof single);
    } else {
      const uint16_t bits = test::cuda::to_bits(single, type_);
      memcpy(at, &bits, sizeof bits);
    }
  }

  Elements& fill(double value) {
    for (int64_t i = 0; i < size(); ++i) set(i, value);
    return *this;
  }
  Elements& fill_normal(uint64_t seed, double deviation, double mean = 0) {
    std::mt19937_64 generator(seed);
    std::normal_distribution<double> normal(mean, deviation);
    for (int64_t i = 0; i < size(); ++i) set(i, normal(generator));
    return *this;
  }

 private:
  template <typename T>
  static T load(const unsigned char* at) {
    T value;
    memcpy(&value, at, sizeof value);
    return value;
  }

  Type type_;
  std::vector<unsigned char> bytes_;
  test::cuda::Buffer<unsigned char> device_;
};

// Holds each of a kernel's results against what it may be, and tells of the first that is wrong.
class Checker {
 public:
  explicit Checker(std::string where) : where_(std::move(where)) {}

  void report() const {
    if (wrong_ > 0)
      ADD_FAILURE() << where_ << ": " << wrong_ << " of " << checked_ << " are wrong, the first: " << first_;
  }

  // `got` is a number of `type`, rounded once from an fp32 value that is off from `exact` by at most `error`.
  void rounded_once(Type type, double got, double exact, double error, const char* what, int64_t row, int64_t column) {
    ++checked_;
    const bool right = std::isnan(exact)   ? std::isnan(got)
                       : std::isinf(exact) ? got == exact
                                           : rounded(type, exact - error) <= got && got <= rounded(type, exact + error);
    if (right) return;
    if (wrong_++ > 0) return;
    std::ostringstream words;
    words << std::setprecision(9) << what << "[" << row << ", " << column << "] is " << got << ", expected " << exact
          << " +- " << error;
    first_ = words.str();
  }
  void same(double got, double exact, const char* what, int64_t row, int64_t column) {
    rounded_once(Type::kFloat, got, exact, 0, what, row, column);
  }

 private:
  std::string where_, first_;
  int64_t checked_ = 0, wrong_ = 0;
};

// What a kernel that makes rows is run on. An output's row has `width` elements, the columns of its sums, and `spare`
// ones that must stay.
struct RowCase {
  Type type;
  int64_t rows, width, group_size = 0;  // 0: no sums
  bool columns = false, sums = true;
  int64_t spare = 0, shift = 0;  // elements; shift: before every buffer

  int64_t groups() const { return group_size == 0 ? 0 : groups_per_row(width, group_size); }
  int64_t stride() const { return width + (columns ? 2 * groups() : 0) + spare; }
};

constexpr double kUntouched = -77;  // in each type

// A kernel's outputs and the sums that it was asked for.
class RowOutput {
 public:
  explicit RowOutput(const RowCase& c)
      : out(c.type, c.rows * c.stride(), c.shift),
        sums(Type::kFloat, c.rows * std::max<int64_t>(1, c.groups()), c.shift),
        case_(c) {
    out.fill(kUntouched);
    sums.fill(kUntouched);
  }

  PoolOutput pool() {
    PoolOutput result;
    if (case_.group_size == 0) return result;
    result.sums = case_.sums ? sums.floats() : nullptr;
    result.group_size = case_.group_size;
    result.columns = case_.columns;
    return result;
  }

  double at(int64_t row, int64_t i) const { return out[row * case_.stride() + i]; }
  void fetch(test::cuda::Results& results) {
    out.fetch();
    sums.fetch();
    results.add(out.bytes());
    results.add(sums.bytes());
  }

  // The sums are those of the outputs as they stand in memory. In fp32, a lane adds its 8 in 3 steps, 32 lanes take 5
  // more, and before these each lane may add every 32nd of the sums of 32: so many roundings of at most the sum of the
  // absolute values.
  void check_sums(Checker& checker) const {
    const int64_t groups = case_.groups();
    for (int64_t row = 0; row < case_.rows; ++row) {
      for (int64_t group = 0; group < groups; ++group) {
        const int64_t begin = group * case_.group_size, end = std::min(case_.width, begin + case_.group_size);
        double sum = 0, size = 0;
        for (int64_t i = begin; i < end; ++i) sum += at(row, i), size += std::abs(at(row, i));
        const double error = (9 + static_cast<double>(tiles_over(end - begin, 1024))) * kFloatUnit * size;
        if (case_.sums) checker.rounded_once(Type::kFloat, sums[row * groups + group], sum, error, "sum", row, group);
        if (!case_.columns) continue;
        const double first = at(row, case_.width + group), second = at(row, case_.width + groups + group);
        const double own = case_.sums ? sums[row * groups + group] : sum;
        checker.rounded_once(case_.type, first, own, case_.sums ? 0 : error, "first column", row, group);
        checker.same(second, first, "second column", row, group);
      }
      for (int64_t i = case_.stride() - case_.spare; i < case_.stride(); ++i)
        checker.same(at(row, i), kUntouched, "spare", row, i);
    }
  }

  // Whoever makes a row and takes its sums gets the bits of Api::pool.
  void check_pool_agrees(const Api& api, Checker& checker) const {
    if (case_.group_size == 0 || !case_.sums) return;
    RowOutput again(case_);
    for (int64_t i = 0; i < out.size(); ++i) again.out.set(i, out[i]);
    void* const x = again.out.data();
    EXPECT_EQ(api.pool(x, case_.stride(), case_.type, case_.rows, case_.width, again.pool(), nullptr), Status::kOk);
    again.sums.fetch();
    for (int64_t i = 0; i < sums.size(); ++i) checker.same(sums[i], again.sums[i], "sum beside pool's", 0, i);
  }

  Elements out;   // [rows, stride]
  Elements sums;  // [rows, groups] f32

 private:
  RowCase case_;
};

// Widths with and without a tail, one segment and several; groups within a warp, across warps, that do not divide the
// width, whole rows; strides that allow vector loads and those that do not.
inline std::vector<RowCase> row_cases(Type type) {
  return {
      {type, 3, 32, 32},
      {type, 2, 96, 64, /*columns=*/true},             // a short last group within a warp
      {type, 2, 352, 128, true, true, /*spare=*/2},    // an odd stride for vectors of 8
      {type, 1, 1184, 96, true, /*sums=*/false, 8},    // groups beside the warp's 128 and 256
      {type, 2, 2048 + 160, 256},                      // more than one segment, a short group
      {type, 1, 4128, 4128, true, true, 6},            // one group: whole rows
      {type, 2, 416, 512, true},                       // a group longer than the row
      {type, 2, 288, 32, true, true, 3, /*shift=*/1},  // nothing is aligned
      {type, 2, 544, 0, false, false, 8},              // no sums
      {type, 1, 5504, 32, true},
  };
}

inline std::string describe(const RowCase& c) {
  std::ostringstream words;
  words << test::cuda::name_of(c.type) << " [" << c.rows << ", " << c.width << "] groups of " << c.group_size
        << ", stride " << c.stride() << ", shift " << c.shift;
  return words.str();
}

}  // namespace qalora::kernels::cuda::tests
