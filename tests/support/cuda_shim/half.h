// __nv_bfloat16 and __half with the conversions and arithmetic of cuda_bf16.h and cuda_fp16.h. Each function rounds
// once, to nearest even, and its NaNs are 0x7fff, as the manuals say. Computed in double: no sum, product or quotient
// of two such numbers is rounded twice (53 bits are more than 2 * 11 + 2, and what is subnormal is exact or far from
// the middle); fused ones go through rounding to odd.
#pragma once

#include <math.h>

#include <bit>
#include <cstdint>

#include "words.h"

namespace cuda_shim {

// To a 16-bit format of 1 sign, `15 - mantissa_bits` exponent and `mantissa_bits` mantissa bits.
inline uint16_t round_to_16(double value, int mantissa_bits) {
  const uint64_t bits = std::bit_cast<uint64_t>(value);
  const auto sign = static_cast<uint16_t>(bits >> 63 << 15);
  if (value != value) return 0x7fff;
  const int bias = (1 << (14 - mantissa_bits)) - 1;
  const auto infinity = static_cast<uint16_t>(((2 * bias + 1) << mantissa_bits));
  const int exponent = static_cast<int>(bits >> 52 & 0x7ff) - 1023;
  if (exponent > bias) return sign | infinity;
  const int below = exponent < 1 - bias ? 1 - bias - exponent : 0;  // how far under the smallest normal number
  const int shift = 52 - mantissa_bits + below;
  if (shift > 53) return sign;  // less than half of the smallest subnormal number (a subnormal double too)
  const uint64_t significand = (bits & ((uint64_t{1} << 52) - 1)) | uint64_t{1} << 52;
  const uint64_t rest = significand & ((uint64_t{1} << shift) - 1), middle = uint64_t{1} << (shift - 1);
  uint64_t kept = significand >> shift;
  kept += rest > middle || (rest == middle && (kept & 1));
  // The leading one adds 1 to the exponent field; so does a carry out of the mantissa, up to infinity.
  const int field = below ? 0 : exponent + bias - 1;
  return sign | static_cast<uint16_t>(kept + (static_cast<uint64_t>(field) << mantissa_bits));
}

// a * b + c to odd: rounding that to a shorter format equals rounding the exact value. a * b must be exact in double.
inline double fma_to_odd(double a, double b, double c) {
  const double product = a * b, sum = product + c;
  const double part = sum - product, error = (product - (sum - part)) + (c - part);
  if (error == 0 || error != error || (std::bit_cast<uint64_t>(sum) & 1)) return sum;
  return nextafter(sum, error > 0 ? INFINITY : -INFINITY);
}

inline float bfloat16_to_float(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }
inline float half_to_float(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16, magnitude = bits & 0x7fffu;
  if (magnitude >= 0x7c00) return std::bit_cast<float>(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  // Exponent bias 15 -> 127 by one exact product, which also makes a subnormal half normal.
  return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude << 13) * 0x1p112f));
}
inline uint16_t float_to_bfloat16(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  if (value != value) return 0x7fff;
  return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}
inline uint16_t float_to_half(float value) { return round_to_16(value, 10); }

}  // namespace cuda_shim

struct alignas(2) __nv_bfloat16_raw {
  unsigned short x;
};
struct alignas(2) __half_raw {
  unsigned short x;
};

struct alignas(2) __nv_bfloat16 {
  unsigned short __x;
  __nv_bfloat16() = default;
  __nv_bfloat16(float value) : __x(cuda_shim::float_to_bfloat16(value)) {}
  __nv_bfloat16(double value) : __x(cuda_shim::round_to_16(value, 7)) {}
  constexpr __nv_bfloat16(__nv_bfloat16_raw raw) : __x(raw.x) {}
  operator float() const { return cuda_shim::bfloat16_to_float(__x); }
  operator __nv_bfloat16_raw() const { return {__x}; }
};
struct alignas(2) __half {
  unsigned short __x;
  __half() = default;
  __half(float value) : __x(cuda_shim::float_to_half(value)) {}
  __half(double value) : __x(cuda_shim::round_to_16(value, 10)) {}
  constexpr __half(__half_raw raw) : __x(raw.x) {}
  operator float() const { return cuda_shim::half_to_float(__x); }
  operator __half_raw() const { return {__x}; }
};
struct alignas(4) __nv_bfloat162 {
  __nv_bfloat16 x, y;
  __nv_bfloat162() = default;
  constexpr __nv_bfloat162(__nv_bfloat16 low, __nv_bfloat16 high) : x(low), y(high) {}
};
struct alignas(4) __half2 {
  __half x, y;
  __half2() = default;
  constexpr __half2(__half low, __half high) : x(low), y(high) {}
};
using nv_bfloat16 = __nv_bfloat16;
using nv_bfloat162 = __nv_bfloat162;
using half = __half;
using half2 = __half2;

inline float __bfloat162float(__nv_bfloat16 a) { return a; }
inline float __half2float(__half a) { return a; }
inline __nv_bfloat16 __float2bfloat16_rn(float a) { return a; }
inline __nv_bfloat16 __float2bfloat16(float a) { return a; }
inline __half __float2half_rn(float a) { return a; }
inline __half __float2half(float a) { return a; }
inline __nv_bfloat16 __double2bfloat16(double a) { return a; }
inline __half __double2half(double a) { return a; }
inline __nv_bfloat162 __float2bfloat162_rn(float a) { return {a, a}; }
inline __half2 __float2half2_rn(float a) { return {a, a}; }
inline __nv_bfloat162 __floats2bfloat162_rn(float low, float high) { return {low, high}; }
inline __half2 __floats2half2_rn(float low, float high) { return {low, high}; }
inline __nv_bfloat162 __float22bfloat162_rn(float2 a) { return {a.x, a.y}; }
inline __half2 __float22half2_rn(float2 a) { return {a.x, a.y}; }
inline float2 __bfloat1622float2(__nv_bfloat162 a) { return {a.x, a.y}; }
inline float2 __half22float2(__half2 a) { return {a.x, a.y}; }
inline float __low2float(__nv_bfloat162 a) { return a.x; }
inline float __low2float(__half2 a) { return a.x; }
inline float __high2float(__nv_bfloat162 a) { return a.y; }
inline float __high2float(__half2 a) { return a.y; }
inline __nv_bfloat16 __low2bfloat16(__nv_bfloat162 a) { return a.x; }
inline __nv_bfloat16 __high2bfloat16(__nv_bfloat162 a) { return a.y; }
inline __half __low2half(__half2 a) { return a.x; }
inline __half __high2half(__half2 a) { return a.y; }
inline __nv_bfloat162 __bfloat162bfloat162(__nv_bfloat16 a) { return {a, a}; }
inline __half2 __half2half2(__half a) { return {a, a}; }
inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 low, __nv_bfloat16 high) { return {low, high}; }
inline __half2 __halves2half2(__half low, __half high) { return {low, high}; }
inline __nv_bfloat162 make_bfloat162(__nv_bfloat16 low, __nv_bfloat16 high) { return {low, high}; }
inline __half2 make_half2(__half low, __half high) { return {low, high}; }
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 a) { return a.__x; }
inline unsigned short __half_as_ushort(__half a) { return a.__x; }
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short a) { return __nv_bfloat16_raw{a}; }
inline __half __ushort_as_half(unsigned short a) { return __half_raw{a}; }

// One operation for a type, and lane by lane for its pair.
#define CUDA_SHIM_BINARY(name, element, pair, expression) \
  inline element name(element a_, element b_) {           \
    const double a = float(a_), b = float(b_);            \
    return element(expression);                           \
  }                                                       \
  inline pair name##2(pair a, pair b) { return {name(a.x, b.x), name(a.y, b.y)}; }
#define CUDA_SHIM_COMPARE(name, element, operation) \
  inline bool name(element a, element b) { return float(a) operation float(b); }
#define CUDA_SHIM_ARITHMETIC(element, pair, absolute_mask)                                                             \
  CUDA_SHIM_BINARY(__hadd, element, pair, a + b)                                                                       \
  CUDA_SHIM_BINARY(__hsub, element, pair, a - b)                                                                       \
  CUDA_SHIM_BINARY(__hmul, element, pair, a* b)                                                                        \
  inline pair __hadd2_rn(pair a, pair b) { return __hadd2(a, b); }                                                     \
  inline pair __hsub2_rn(pair a, pair b) { return __hsub2(a, b); }                                                     \
  inline pair __hmul2_rn(pair a, pair b) { return __hmul2(a, b); }                                                     \
  inline element __hdiv(element a, element b) { return element(double(float(a)) / double(float(b))); }                 \
  inline element __hfma(element a, element b, element c) {                                                             \
    return element(cuda_shim::fma_to_odd(float(a), float(b), float(c)));                                               \
  }                                                                                                                    \
  inline pair __hfma2(pair a, pair b, pair c) { return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)}; }               \
  inline element __hneg(element a) { return decltype(cuda_shim_raw(a)){static_cast<unsigned short>(a.__x ^ 0x8000)}; } \
  inline pair __hneg2(pair a) { return {__hneg(a.x), __hneg(a.y)}; }                                                   \
  inline element __habs(element a) { return decltype(cuda_shim_raw(a)){static_cast<unsigned short>(a.__x & 0x7fff)}; } \
  inline pair __habs2(pair a) { return {__habs(a.x), __habs(a.y)}; }                                                   \
  inline element __hmax(element a, element b) { return element(fmaxf(a, b)); }                                         \
  inline element __hmin(element a, element b) { return element(fminf(a, b)); }                                         \
  inline pair __hmax2(pair a, pair b) { return {__hmax(a.x, b.x), __hmax(a.y, b.y)}; }                                 \
  inline pair __hmin2(pair a, pair b) { return {__hmin(a.x, b.x), __hmin(a.y, b.y)}; }                                 \
  inline bool __hisnan(element a) { return (a.__x & 0x7fff) > absolute_mask; }                                         \
  CUDA_SHIM_COMPARE(__heq, element, ==)                                                                                \
  CUDA_SHIM_COMPARE(__hlt, element, <)                                                                                 \
  CUDA_SHIM_COMPARE(__hgt, element, >)                                                                                 \
  inline element operator+(element a, element b) { return __hadd(a, b); }                                              \
  inline element operator-(element a, element b) { return __hsub(a, b); }                                              \
  inline element operator*(element a, element b) { return __hmul(a, b); }                                              \
  inline element operator/(element a, element b) { return __hdiv(a, b); }                                              \
  inline pair operator+(pair a, pair b) { return __hadd2(a, b); }                                                      \
  inline pair operator-(pair a, pair b) { return __hsub2(a, b); }                                                      \
  inline pair operator*(pair a, pair b) { return __hmul2(a, b); }

__nv_bfloat16_raw cuda_shim_raw(__nv_bfloat16);  // for decltype
__half_raw cuda_shim_raw(__half);
CUDA_SHIM_ARITHMETIC(__nv_bfloat16, __nv_bfloat162, 0x7f80)
CUDA_SHIM_ARITHMETIC(__half, __half2, 0x7c00)

#undef CUDA_SHIM_BINARY
#undef CUDA_SHIM_COMPARE
#undef CUDA_SHIM_ARITHMETIC
