#include "qalora/core/format.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>

namespace qalora {
namespace {

TEST(Format, Bytes) {
  EXPECT_EQ(format_bytes(0), "0 B");
  EXPECT_EQ(format_bytes(999), "999 B");
  EXPECT_EQ(format_bytes(1000), "1.00 kB");
  EXPECT_EQ(format_bytes(3910000000), "3.91 GB");
  EXPECT_EQ(format_bytes(39100000000), "39.1 GB");
  EXPECT_EQ(format_bytes(391000000), "391 MB");
  EXPECT_EQ(format_bytes(999999), "1.00 MB") << "rounds up into the next unit, never 1000 kB";
  EXPECT_EQ(format_bytes(9999), "10.0 kB");
  EXPECT_EQ(format_bytes(std::numeric_limits<uint64_t>::max()), "18.4 EB");
}

TEST(Format, Duration) {
  EXPECT_EQ(format_duration(0), "0.0 s");
  EXPECT_EQ(format_duration(0.44), "0.4 s");
  EXPECT_EQ(format_duration(59.9), "59.9 s");
  EXPECT_EQ(format_duration(59.96), "1:00");
  EXPECT_EQ(format_duration(91), "1:31");
  EXPECT_EQ(format_duration(3599.6), "1:00:00");
  EXPECT_EQ(format_duration(7509), "2:05:09");
  EXPECT_EQ(format_duration(-1), "?");
  EXPECT_EQ(format_duration(std::nan("")), "?");
  EXPECT_EQ(format_clock(7), "0:07");
  EXPECT_EQ(format_clock(std::numeric_limits<double>::infinity()).find('-'), std::string::npos);
}

TEST(Format, Count) {
  EXPECT_EQ(format_count(0), "0");
  EXPECT_EQ(format_count(999), "999");
  EXPECT_EQ(format_count(1000), "1,000");
  EXPECT_EQ(format_count(1234567), "1,234,567");
  EXPECT_EQ(format_count(-123), "-123");
  EXPECT_EQ(format_count(-1234), "-1,234");
  EXPECT_EQ(format_count(std::numeric_limits<int64_t>::min()), "-9,223,372,036,854,775,808");
}

TEST(Format, Fixed) {
  EXPECT_EQ(format_fixed(1.25, 1), "1.2");
  EXPECT_EQ(format_fixed(-0.5, 3), "-0.500");
  EXPECT_EQ(format_fixed(1e300, 0).size(), 301u);
}

TEST(Format, NumberReadsBackAsItself) {
  EXPECT_EQ(format_number(0), "0");
  EXPECT_EQ(format_number(1), "1");
  EXPECT_EQ(format_number(0.0002), "0.0002");
  EXPECT_EQ(format_number(2e-5), "2e-05");
  EXPECT_EQ(format_number(0.1), "0.1");
  EXPECT_EQ(format_number(-2.5), "-2.5");
  EXPECT_EQ(format_number(1e22), "1e+22");
  std::mt19937_64 random(3);
  for (int i = 0; i < 10000; ++i) {
    const uint64_t bits = random();
    double value;
    static_assert(sizeof value == sizeof bits);
    std::memcpy(&value, &bits, sizeof value);
    if (!std::isfinite(value)) continue;
    ASSERT_EQ(std::strtod(format_number(value).c_str(), nullptr), value) << format_number(value);
  }
}

TEST(Format, JoinAndSplit) {
  EXPECT_EQ(join({}, ", "), "");
  EXPECT_EQ(join({"a"}, ", "), "a");
  EXPECT_EQ(join({"a", "", "c"}, ", "), "a, , c");
  EXPECT_EQ(split("a,,c", ','), (std::vector<std::string>{"a", "", "c"}));
  EXPECT_EQ(split("", ','), std::vector<std::string>{""});
  EXPECT_EQ(split("a,", ','), (std::vector<std::string>{"a", ""}));
}

TEST(Format, Closest) {
  const std::vector<std::string> keys = {"rank", "steps", "learning_rate", "batch_size", "micro_batch_size"};
  EXPECT_EQ(closest("rnak", keys), "rank");
  EXPECT_EQ(closest("Rank", keys), "rank");
  EXPECT_EQ(closest("learning-rate", keys), "learning_rate");
  EXPECT_EQ(closest("step", keys), "steps");
  EXPECT_EQ(closest("micro_batchsize", keys), "micro_batch_size");
  EXPECT_EQ(closest("zebra", keys), "");
  EXPECT_EQ(closest("", keys), "");
  EXPECT_EQ(closest("x", {"y"}), "") << "one letter for another is no typing error";
  EXPECT_EQ(closest("rank", {}), "");
  EXPECT_EQ(did_you_mean("rnak", keys), " (did you mean 'rank'?)");
  EXPECT_EQ(did_you_mean("zebra", keys), "");
}

TEST(Format, Table) {
  EXPECT_EQ(format_table({{"layer", "error"}, {"q_proj", "0.01"}, {"o", "12.5"}}),
            "layer   error\n"
            "q_proj   0.01\n"
            "o        12.5\n");
  EXPECT_EQ(format_table({{"größe", "x"}, {"1", "y"}}), "größe  x\n    1  y\n") << "width in characters, not in bytes";
  EXPECT_EQ(format_table({}), "");
  EXPECT_EQ(format_table({{"a", "b"}, {"only"}}), "a     b\nonly\n") << "rows may be short, no blanks at the end";
}

TEST(Format, Utf8) {
  for (const char* good :
       {"", "abc", "größe", "\xF0\x9F\x98\x80", "\xED\x9F\xBF", "\xEE\x80\x80", "\xF4\x8F\xBF\xBF", "\xC2\x80"}) {
    EXPECT_TRUE(valid_utf8(good)) << good;
  }
  for (const char* bad :
       {"\x80", "\xC3", "\xC0\xAF", "\xC1\xBF", "\xE0\x80\xAF", "\xE0\x9F\xBF", "\xED\xA0\x80", "\xF0\x80\x80\xAF",
        "\xF4\x90\x80\x80", "\xF5\x80\x80\x80", "\xFF", "a\xE2\x82", "\xE2\x28\xA1", "\xF0\x9F\x98"}) {
    EXPECT_FALSE(valid_utf8(bad));
  }
  EXPECT_TRUE(valid_utf8(std::string_view("a\0b", 3)));
}

}  // namespace
}  // namespace qalora
