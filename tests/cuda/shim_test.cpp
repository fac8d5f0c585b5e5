// The shim's primitives against what the CUDA and PTX manuals say, in plain loops. What kernels prove on it is worth no
// more than this.
#include <cmath>
#include <functional>
#include <string>

#include "cuda/support.h"
#include "kernels/cuda/dialect.h"
#include "support/cuda_shim/settings.h"

namespace qalora::kernels::cuda {
namespace {

using cuda_shim::Order;
using test::cuda::Buffer;

LaunchShape one_block(int threads, int64_t shared_bytes = 0) {
  return {dim3(1), dim3(static_cast<unsigned>(threads)), shared_bytes};
}

// What the launch's fault says, or "" when there was none.
std::string fault_of(const std::function<void()>& run) {
  try {
    run();
  } catch (const cuda_shim::Fault& fault) {
    return fault.what();
  }
  return "";
}
#define EXPECT_FAULT(statement, text)                                   \
  EXPECT_NE(fault_of([&] { statement; }).find(text), std::string::npos) \
      << "it said: '" << fault_of([&] { statement; }) << "'"

// ---- Numbers
// --------------------------------------------------------------------------------------------------------------------

// The nearest number of the format to `value`, ties to even, from the format's definition: multiples of its quantum.
double nearest(double value, int mantissa_bits) {
  if (!std::isfinite(value) || value == 0) return value;
  const int bias = (1 << (14 - mantissa_bits)) - 1;
  const int exponent = std::max(std::ilogb(value), 1 - bias);
  const double quantum = std::ldexp(1.0, exponent - mantissa_bits);
  const double rounded = std::nearbyint(value / quantum) * quantum;
  const double largest = std::ldexp(2.0 - std::ldexp(1.0, -mantissa_bits), bias);
  return std::abs(rounded) > largest ? std::copysign(INFINITY, value) : rounded;
}

double value_of(uint16_t bits, int mantissa_bits) {
  const int bias = (1 << (14 - mantissa_bits)) - 1, field = (bits & 0x7fff) >> mantissa_bits;
  const double fraction = std::ldexp(static_cast<double>(bits & ((1 << mantissa_bits) - 1)), -mantissa_bits);
  double magnitude = field == 0 ? std::ldexp(fraction, 1 - bias) : std::ldexp(1 + fraction, field - bias);
  if (field == 2 * bias + 1) magnitude = fraction == 0 ? INFINITY : NAN;
  return bits & 0x8000 ? -magnitude : magnitude;
}

void expect_same_number(double actual, double expected, const std::string& what) {
  if (std::isnan(expected)) {
    ASSERT_TRUE(std::isnan(actual)) << what;
    return;
  }
  ASSERT_EQ(actual, expected) << what;
  ASSERT_EQ(std::signbit(actual), std::signbit(expected)) << what;
}

template <typename Element>
void every_pattern_round_trips(int mantissa_bits, float (*to_float)(Element), Element (*from_float)(float)) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    Element element{};
    element.__x = static_cast<uint16_t>(bits);
    const double expected = value_of(static_cast<uint16_t>(bits), mantissa_bits);
    expect_same_number(to_float(element), expected, "to float: " + std::to_string(bits));
    const uint16_t back = from_float(to_float(element)).__x;
    ASSERT_EQ(back, std::isnan(expected) ? 0x7fff : bits);  // there is one NaN: 0x7fff
    // Between this number and the next one away from zero: before the middle, the middle, beyond it.
    if ((bits & 0x7fff) + 1 >= 0x7c00u && mantissa_bits == 10) continue;
    if ((bits & 0x7fff) + 1 >= 0x7f80u) continue;
    const double next = value_of(static_cast<uint16_t>(bits + 1), mantissa_bits), middle = (expected + next) / 2;
    for (const double value : {std::nextafter(static_cast<float>(middle), 0.0f), static_cast<float>(middle),
                               std::nextafter(static_cast<float>(middle), std::signbit(next) ? -INFINITY : INFINITY)}) {
      const float single = static_cast<float>(value);
      expect_same_number(to_float(from_float(single)), nearest(single, mantissa_bits),
                         "rounding " + std::to_string(single));
    }
  }
}

TEST(Numbers, EveryPatternRoundTripsAndMiddlesGoToEven) {
  every_pattern_round_trips<__nv_bfloat16>(7, __bfloat162float, __float2bfloat16_rn);
  every_pattern_round_trips<__half>(10, __half2float, __float2half_rn);
}

TEST(Numbers, TooLargeIsInfinityAndTooSmallIsZero) {
  EXPECT_EQ(__float2half_rn(65519.9f).__x,
            0x7bff);  // the middle between the largest half, 65504, and what would come after it is 65520
  EXPECT_EQ(__float2half_rn(65520.0f).__x, 0x7c00);
  EXPECT_EQ(__float2half_rn(-1e30f).__x, 0xfc00);
  EXPECT_EQ(__float2half_rn(0x1p-25f).__x, 0x0000);
  EXPECT_EQ(__float2half_rn(-0x1.000002p-25f).__x, 0x8001);
  EXPECT_EQ(__float2bfloat16_rn(3.4e38f).__x, 0x7f80);
  EXPECT_EQ(__float2bfloat16_rn(-NAN).__x, 0x7fff);
  EXPECT_EQ(__float2half_rn(-NAN).__x, 0x7fff);
}

// A sample of patterns dense near the ends of each exponent, with zeros, subnormals, infinities and NaN.
template <typename Element>
std::vector<Element> interesting(int mantissa_bits) {
  std::vector<Element> all;
  for (uint32_t sign : {0u, 0x8000u}) {
    for (uint32_t field = 0; field < (1u << (15 - mantissa_bits)); field += mantissa_bits == 7 ? 9 : 2) {
      for (uint32_t low : {0u, 1u, 3u, (1u << mantissa_bits) / 3, (1u << mantissa_bits) - 1}) {
        Element element{};
        element.__x = static_cast<uint16_t>(sign | field << mantissa_bits | low);
        all.push_back(element);
      }
    }
  }
  return all;
}

template <typename Element>
void arithmetic_rounds_once(int mantissa_bits) {
  const auto values = interesting<Element>(mantissa_bits);
  for (const Element a : values) {
    for (const Element b : values) {
      const double x = float(a), y = float(b);
      expect_same_number(float(__hadd(a, b)), nearest(x + y, mantissa_bits), "+");
      expect_same_number(float(__hsub(a, b)), nearest(x - y, mantissa_bits), "-");
      expect_same_number(float(__hmul(a, b)), nearest(x * y, mantissa_bits), "*");
    }
  }
}

TEST(Numbers, ArithmeticOfHalvesRoundsOnce) {
  arithmetic_rounds_once<__nv_bfloat16>(7);
  arithmetic_rounds_once<__half>(10);
}

// 80-bit floats hold every product, and most sums; the rest of a sum says on which side of a middle it lies.
template <typename Element>
void fused_rounds_once(int mantissa_bits) {
  const auto values = interesting<Element>(mantissa_bits);
  test::cuda::Generator generator(5);
  const auto any = [&] { return values[static_cast<size_t>(generator.below(static_cast<int64_t>(values.size())))]; };
  for (int i = 0; i < 200000; ++i) {
    const Element a = any(), b = any(), c = any();
    const long double product = static_cast<long double>(float(a)) * float(b), sum = product + float(c);
    const long double part = sum - product, error = (product - (sum - part)) + (float(c) - part);
    double expected = nearest(static_cast<double>(sum), mantissa_bits);
    if (std::isfinite(expected) && std::isfinite(static_cast<double>(sum))) {
      // The nearest of three candidates to sum + error.
      const int smallest = mantissa_bits == 7 ? -126 : -14, exponent = expected == 0 ? smallest : std::ilogb(expected);
      const double quantum = std::ldexp(1.0, std::max(exponent, smallest) - mantissa_bits);
      for (const double candidate : {expected - quantum, expected + quantum}) {
        if (nearest(candidate, mantissa_bits) != candidate) continue;
        const long double here = std::abs(sum - expected), there = std::abs(sum - candidate);
        // Both are exact where it matters: near a middle. The error decides when `sum` itself lies there.
        const bool towards =
            error != 0 && std::signbit(static_cast<double>(error)) == std::signbit(candidate - expected);
        if (there < here || (there == here && towards)) expected = candidate;
      }
    }
    const double actual = float(__hfma(a, b, c));
    if (std::isnan(expected)) ASSERT_TRUE(std::isnan(actual));
    else ASSERT_EQ(actual, expected) << float(a) << " * " << float(b) << " + " << float(c);
  }
}

TEST(Numbers, FusedMultiplyAddOfHalvesRoundsOnce) {
  fused_rounds_once<__nv_bfloat16>(7);
  fused_rounds_once<__half>(10);
  // (1 + 2^-7)^2 + 2^-8 lies 2^-14 above a middle; rounding the product first would end in the middle and go down to
  // even.
  const __nv_bfloat16 a = 1.0078125f, c = 0x1p-8f;
  EXPECT_EQ(float(__hfma(a, a, c)), 1.0234375f);
  EXPECT_EQ(float(__hadd(__hmul(a, a), c)), 1.015625f);
  // 1.0234375 * 1.5 is a middle, 196.5 * 2^-7; the addend is less than a double holds beside it, and decides.
  const __nv_bfloat16 x = 1.0234375f, y = 1.5f;
  EXPECT_EQ(float(__hfma(x, y, __nv_bfloat16(0.0f))), 1.53125f);
  EXPECT_EQ(float(__hfma(x, y, __nv_bfloat16(0x1p-100f))), 1.5390625f);
  EXPECT_EQ(float(__hfma(x, y, __nv_bfloat16(-0x1p-100f))), 1.53125f);
  EXPECT_EQ(float(__hfma(a, y, __nv_bfloat16(0.0f))), 1.515625f);
  EXPECT_EQ(float(__hfma(a, y, __nv_bfloat16(-0x1p-100f))), 1.5078125f);
}

TEST(Numbers, PairsAreTwoOfEach) {
  const __nv_bfloat162 a = __floats2bfloat162_rn(1.5f, -2.0f), b = __float22bfloat162_rn({0.25f, 4.0f});
  EXPECT_EQ(__bfloat1622float2(__hadd2(a, b)).x, 1.75f);
  EXPECT_EQ(__bfloat1622float2(__hsub2(a, b)).y, -6.0f);
  EXPECT_EQ(__bfloat1622float2(__hfma2(a, b, a)).x, 1.875f);
  const __half2 c = __floats2half2_rn(1.5f, -2.0f), d = __half2half2(__float2half_rn(3.0f));
  EXPECT_EQ(__half22float2(__hmul2(c, d)).y, -6.0f);
  EXPECT_EQ(__low2float(c), 1.5f);
  EXPECT_EQ(__high2float(c), -2.0f);
  uint32_t word;  // the first of a pair is the low half of the word
  memcpy(&word, &a, sizeof(word));
  EXPECT_EQ(word, 0xc0003fc0u);
}

TEST(Numbers, BitFunctions) {
  EXPECT_EQ(__byte_perm(0x33221100, 0x77665544, 0x5140), 0x55114400u);
  EXPECT_EQ(__popc(0xf0f0u), 8);
  EXPECT_EQ(__clz(1), 31);
  EXPECT_EQ(__clz(0), 32);
  EXPECT_EQ(__ffs(8), 4);
  EXPECT_EQ(__brev(1), 0x80000000u);
  EXPECT_EQ(__funnelshift_l(0x80000000u, 1, 1), 3u);
  EXPECT_EQ(__funnelshift_r(0x80000000u, 1, 4), 0x18000000u);
  EXPECT_EQ(__saturatef(NAN), 0.0f);
  EXPECT_FAULT(__byte_perm(0, 0, 8), "selector");
}

// ---- Indices, grids, limits
// --------------------------------------------------------------------------------------------------------

__global__ void where_am_i(unsigned* out) {
  const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  atomicAdd(&out[block * blockDim.x * blockDim.y * blockDim.z + thread], 1u + block * 1000 + thread);
}

TEST(Launch, EveryThreadOfEveryBlockRunsOnceInAnyOrder) {
  cuda_shim::for_each_order([](Order order) {
    Buffer<unsigned> out(2 * 3 * 4 * 5 * 7 * 3);
    out.upload(std::vector<unsigned>(static_cast<size_t>(out.size())));
    ASSERT_EQ(launch(where_am_i, {dim3(2, 3, 4), dim3(5, 7, 3), 0}, nullptr, out.data()), Status::kOk);
    for (unsigned i = 0; i < out.size(); ++i) ASSERT_EQ(out.data()[i], 1 + i / 105 * 1000 + i % 105) << name_of(order);
  });
}

__global__ void nothing() {}

TEST(Launch, LimitsOfTheHardwareAreFaults) {
  EXPECT_EQ(fault_of([] { (void)launch(nothing, one_block(1024, 227 * 1024), nullptr); }), "");
  EXPECT_FAULT((void)launch(nothing, one_block(1025), nullptr), "1025");
  EXPECT_FAULT((void)launch(nothing, one_block(32, 227 * 1024 + 1), nullptr), "shared memory");
  EXPECT_FAULT((void)launch(nothing, {dim3(0), dim3(32), 0}, nullptr), "grid");
  EXPECT_FAULT((void)launch(nothing, {dim3(1, 65536), dim3(32), 0}, nullptr), "grid");
  EXPECT_FAULT((void)launch(nothing, {dim3(1), dim3(1, 1, 65), 0}, nullptr), "block");
  cuda_shim::Settings small = cuda_shim::settings();
  small.max_shared_bytes = 99 * 1024;
  const cuda_shim::With with(small);
  EXPECT_FAULT((void)launch(nothing, one_block(32, 100 * 1024), nullptr), "shared memory");
}

TEST(Launch, CanBeRecordedWithoutRunning) {
  std::vector<cuda_shim::Launch> launches;
  cuda_shim::Settings recording = cuda_shim::settings();
  recording.record_only = true;
  recording.launches = &launches;
  const cuda_shim::With with(recording);
  (void)launch(where_am_i, {dim3(1 << 20), dim3(128), 4096}, nullptr, static_cast<unsigned*>(nullptr));
  ASSERT_EQ(launches.size(), 1u);
  EXPECT_EQ(launches[0].grid.x, 1u << 20);
  EXPECT_EQ(launches[0].shared_bytes, 4096);
}

}  // namespace
}  // namespace qalora::kernels::cuda
