#include "cuda/rows.h"

namespace qalora::kernels::cuda::tests {

namespace {

struct RopeCase {
  int64_t tokens, heads, head_dim, shift = 0;
};

// Heads that fill vectors, that have a tail, that are longer than a block or more than it has threads for; one pair
// alone.
const RopeCase kCases[] = {{3, 4, 128}, {1, 2, 4160}, {2, 1, 64}, {1, 70, 64},  {2, 3, 80},
                           {2, 3, 44},  {2, 5, 6},    {1, 1, 2},  {2, 2, 64, 1}};

void check_rope(const Api& api, test::cuda::Results& results, Type type, const RopeCase& c, bool backward,
                bool in_place) {
  std::ostringstream where;
  where << test::cuda::name_of(type) << " [" << c.tokens << ", " << c.heads << ", " << c.head_dim << "] shift "
        << c.shift << (backward ? " backward" : "") << (in_place ? " in place" : "");
  Checker checker(where.str());
  const int64_t half = c.head_dim / 2, count = c.tokens * c.heads * c.head_dim;
  Elements x(type, count), moved(type, count, c.shift), out(type, count, c.shift);
  Elements cos(Type::kFloat, c.tokens * c.head_dim, c.shift), sin(Type::kFloat, c.tokens * c.head_dim, c.shift);
  for (Elements* each : {&x, &moved}) each->fill_normal(static_cast<uint64_t>(c.head_dim), 1);
  for (int64_t token = 0; token < c.tokens; ++token) {
    for (int64_t i = 0; i < c.head_dim; ++i) {
      const double angle =
          static_cast<double>(3 * token + 1) * std::pow(1e4, -static_cast<double>(i) / static_cast<double>(half));
      cos.set(token * c.head_dim + i, i < half ? std::cos(angle) : NAN);  // the second halves are not read
      sin.set(token * c.head_dim + i, i < half ? std::sin(angle) : NAN);
    }
  }
  void* const from = moved.data();
  void* const to = in_place ? from : out.data();
  const float *c_data = cos.floats(), *s_data = sin.floats();
  EXPECT_EQ(api.rope(from, type, c_data, s_data, c.tokens, c.heads, c.head_dim, backward, to, nullptr), Status::kOk);
  Elements& written = in_place ? moved : out;
  written.fetch();
  results.add(written.bytes());
  for (int64_t row = 0; row < c.tokens * c.heads; ++row) {
    for (int64_t i = 0; i < half; ++i) {
      const double a = x[row * c.head_dim + i], b = x[row * c.head_dim + half + i];
      const int64_t at = row / c.heads * c.head_dim + i;
      const double turn = (backward ? -1 : 1) * sin[at], stay = cos[at];
      // Two products and their sum
      checker.rounded_once(type, written[row * c.head_dim + i], a * stay - b * turn,
                           2 * kFloatUnit * (std::abs(a * stay) + std::abs(b * turn)), "first", row, i);
      checker.rounded_once(type, written[row * c.head_dim + half + i], b * stay + a * turn,
                           2 * kFloatUnit * (std::abs(b * stay) + std::abs(a * turn)), "second", row, i);
    }
  }
  checker.report();
}

}  // namespace

KERNEL_CHECK(rope, Turns) {
  for (const Type type : kAllTypes) {
    for (const RopeCase& c : kCases) check_rope(api, results, type, c, false, false);
  }
}

KERNEL_CHECK(rope, TurnsBackAndInPlace) {
  for (const Type type : kAllTypes) {
    for (const RopeCase& c : kCases) {
      check_rope(api, results, type, c, true, false);
      check_rope(api, results, type, c, c.tokens == 2, true);
    }
  }
}

KERNEL_CHECK(rope, RefusesWhatItCannotDo) {
  Elements x(Type::kHalf, 18);
  Elements angles(Type::kFloat, 18);
  void* const data = x.data();
  float* const floats = angles.floats();
  EXPECT_EQ(api.rope(data, Type::kHalf, floats, floats, 0, 2, 4, false, data, nullptr), Status::kOk);
  EXPECT_EQ(api.rope(data, Type::kHalf, floats, floats, 2, 1, 9, false, data, nullptr), Status::kUnsupported);
  EXPECT_EQ(api.rope(data, Type::kHalf, floats, floats, 2, 0, 8, false, data, nullptr), Status::kBadArgument);
}

}  // namespace qalora::kernels::cuda::tests
