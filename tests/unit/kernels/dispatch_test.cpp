#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "qalora/kernels/isa.h"

namespace qalora::kernels {
namespace {

// What Linux says about the processor, asked another way than the dispatcher does.
bool cpu_flag(const std::string& flag) {
  std::ifstream file("/proc/cpuinfo");
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  return text.find(" " + flag + " ") != std::string::npos || text.find(" " + flag + "\n") != std::string::npos;
}

std::string best_by_cpuinfo() {
  if (cpu_flag("avx512f") && cpu_flag("avx512bw") && cpu_flag("avx512vl") && cpu_flag("avx512dq")) return "avx512";
  return cpu_flag("avx2") ? "avx2" : "scalar";
}

TEST(Dispatch, TakesTheBestThatTheProcessorHas) {
  const char* error = "untouched";
  EXPECT_EQ(choose_isa(nullptr, &error).name, best_by_cpuinfo());
  EXPECT_EQ(error, nullptr);
  EXPECT_EQ(choose_isa("", &error).name, best_by_cpuinfo());
  EXPECT_EQ(error, nullptr);
}

TEST(Dispatch, TheActiveOneIsTheForcedOneOrTheBest) {
  const char* forced = std::getenv("QALORA_FORCE_ISA");
  const std::string expected = forced != nullptr && *forced != '\0' ? forced : best_by_cpuinfo();
  EXPECT_EQ(active_isa(), expected);
  EXPECT_EQ(force_isa_error(), nullptr);
}

TEST(Dispatch, ForcingChoosesOrSaysWhyNot) {
  for (const Isa& isa : kIsas) {
    const char* error = nullptr;
    const Isa& chosen = choose_isa(isa.name, &error);
    if (isa.supported()) {
      EXPECT_STREQ(chosen.name, isa.name);
      EXPECT_EQ(error, nullptr);
    } else {
      EXPECT_EQ(chosen.name, best_by_cpuinfo());
      ASSERT_NE(error, nullptr);
      EXPECT_NE(std::string(error).find("QALORA_FORCE_ISA"), std::string::npos) << error;
    }
  }
  for (const char* wrong : {"sse9", "AVX2", "avx", "avx2 "}) {
    const char* error = nullptr;
    EXPECT_EQ(choose_isa(wrong, &error).name, best_by_cpuinfo());
    ASSERT_NE(error, nullptr) << wrong;
    EXPECT_NE(std::string(error).find("expected scalar, avx2 or avx512"), std::string::npos) << error;
  }
}

TEST(Dispatch, RefusesBadArguments) {
  const std::vector<uint32_t> codes(8);
  const std::vector<float> numbers(4, 1.0f);
  float out[64];
  uint16_t half[64];
  const PackedView good{codes.data(), numbers.data(), numbers.data(), 2, 32, 32, 4};
  EXPECT_EQ(dequantize_rows(good, 0, 2, out), Status::kOk);
  EXPECT_EQ(dequantize_rows_bf16(good, 0, 2, half), Status::kOk);
  EXPECT_EQ(dequantize_rows(good, 2, 2, nullptr), Status::kOk) << "no rows, nothing to write";

  const auto expect = [&](PackedView view, int64_t begin, int64_t end, Status status) {
    EXPECT_EQ(dequantize_rows(view, begin, end, out), status);
    EXPECT_EQ(dequantize_rows_bf16(view, begin, end, half), status);
  };
  expect(good, -1, 2, Status::kBadArgument);
  expect(good, 0, 3, Status::kBadArgument);
  expect(good, 2, 1, Status::kBadArgument);
  EXPECT_EQ(dequantize_rows(good, 0, 2, nullptr), Status::kBadArgument);
  for (int bits : {-1, 0, 1, 7, 9, 16}) {
    PackedView view = good;
    view.bits = bits;
    expect(view, 0, 2, Status::kUnsupported);
  }
  PackedView view = good;
  view.group_size = 0;
  expect(view, 0, 2, Status::kBadArgument);
  view = good, view.codes = nullptr;
  expect(view, 0, 2, Status::kBadArgument);
  view = good, view.scales = nullptr;
  expect(view, 0, 2, Status::kBadArgument);
  view = good, view.offsets = nullptr;
  expect(view, 0, 2, Status::kBadArgument);
  view = good, view.in_features = -8;
  expect(view, 0, 2, Status::kBadArgument);
}

}  // namespace
}  // namespace qalora::kernels
