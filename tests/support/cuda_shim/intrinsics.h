// Arithmetic, bit and memory functions of the CUDA math and programming manuals that kernels may use. Where the
// device's is an approximation (__expf, rsqrtf, ...) this one is as good as the host's: a kernel's tolerance must cover
// the device's error itself.
#pragma once

#include <math.h>

#include <bit>
#include <cstdint>
#include <cstring>

#include "engine.h"
#include "half.h"

// ---- Bits
// --------------------------------------------------------------------------------------------------------------------
inline unsigned __float_as_uint(float a) { return std::bit_cast<unsigned>(a); }
inline int __float_as_int(float a) { return std::bit_cast<int>(a); }
inline float __uint_as_float(unsigned a) { return std::bit_cast<float>(a); }
inline float __int_as_float(int a) { return std::bit_cast<float>(a); }
inline int __popc(unsigned a) { return std::popcount(a); }
inline int __popcll(unsigned long long a) { return std::popcount(a); }
inline int __clz(int a) { return std::countl_zero(static_cast<unsigned>(a)); }
inline int __clzll(long long a) { return std::countl_zero(static_cast<unsigned long long>(a)); }
inline int __ffs(int a) { return a == 0 ? 0 : std::countr_zero(static_cast<unsigned>(a)) + 1; }
inline unsigned __brev(unsigned a) {
  unsigned reversed = 0;
  for (int i = 0; i < 32; ++i) reversed |= (a >> i & 1) << (31 - i);
  return reversed;
}
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>(uint64_t{a} * b >> 32); }
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>(((uint64_t{high} << 32 | low) << (shift & 31)) >> 32);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>((uint64_t{high} << 32 | low) >> (shift & 31));
}
// Byte n of the result is byte (selector >> 4n & 7) of y:x.
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  const uint64_t bytes = uint64_t{y} << 32 | x;
  if (selector & 0x8888)
    cuda_shim::fault("__byte_perm: selector 0x%x has a bit that the manual does not define", selector);
  unsigned result = 0;
  for (int n = 0; n < 4; ++n)
    result |= static_cast<unsigned>(bytes >> (8 * (selector >> (4 * n) & 7)) & 0xff) << (8 * n);
  return result;
}

// ---- Arithmetic; the shim and its kernels are compiled without fused multiply-adds of the compiler's own
// ------------------------
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline float __fsqrt_rn(float a) { return sqrtf(a); }
inline float __frsqrt_rn(float a) { return static_cast<float>(1.0 / sqrt(static_cast<double>(a))); }
inline float rsqrtf(float a) { return __frsqrt_rn(a); }
inline double rsqrt(double a) { return 1.0 / sqrt(a); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __expf(float a) { return expf(a); }
inline float __logf(float a) { return logf(a); }
inline float __log2f(float a) { return log2f(a); }
inline float __sinf(float a) { return sinf(a); }
inline float __cosf(float a) { return cosf(a); }
inline float __powf(float a, float b) { return powf(a, b); }
inline float __saturatef(float a) { return a >= 0 ? fminf(a, 1.0f) : 0.0f; }  // NaN gives 0
inline int __float2int_rn(float a) { return static_cast<int>(rintf(a)); }
inline float __int2float_rn(int a) { return static_cast<float>(a); }
inline float __uint2float_rn(unsigned a) { return static_cast<float>(a); }

#define CUDA_SHIM_MIN_MAX(type)                             \
  inline type min(type a, type b) { return b < a ? b : a; } \
  inline type max(type a, type b) { return a < b ? b : a; }
CUDA_SHIM_MIN_MAX(int)
CUDA_SHIM_MIN_MAX(unsigned)
CUDA_SHIM_MIN_MAX(long)
CUDA_SHIM_MIN_MAX(unsigned long)
CUDA_SHIM_MIN_MAX(long long)
CUDA_SHIM_MIN_MAX(unsigned long long)
#undef CUDA_SHIM_MIN_MAX
inline unsigned min(int a, unsigned b) { return min(static_cast<unsigned>(a), b); }
inline unsigned min(unsigned a, int b) { return min(a, static_cast<unsigned>(b)); }
inline unsigned max(int a, unsigned b) { return max(static_cast<unsigned>(a), b); }
inline unsigned max(unsigned a, int b) { return max(a, static_cast<unsigned>(b)); }
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }

// ---- Memory: cache hints change nothing; UBSan checks the alignment, ASan the bounds
// ---------------------------------------------
#define CUDA_SHIM_LOAD(name)        \
  template <typename T>             \
  inline T name(const T* address) { \
    return *address;                \
  }
#define CUDA_SHIM_STORE(name)                                   \
  template <typename T>                                         \
  inline void name(T* address, std::type_identity_t<T> value) { \
    *address = value;                                           \
  }
CUDA_SHIM_LOAD(__ldg)
CUDA_SHIM_LOAD(__ldca)
CUDA_SHIM_LOAD(__ldcg)
CUDA_SHIM_LOAD(__ldcs)
CUDA_SHIM_LOAD(__ldlu)
CUDA_SHIM_LOAD(__ldcv)
CUDA_SHIM_STORE(__stcg)
CUDA_SHIM_STORE(__stcs)
CUDA_SHIM_STORE(__stwb)
CUDA_SHIM_STORE(__stwt)
#undef CUDA_SHIM_LOAD
#undef CUDA_SHIM_STORE

inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}

// ---- Atomics: a grid's threads run on one thread of the host
// ---------------------------------------------------------------------
#define CUDA_SHIM_ATOMIC(name, type, expression) \
  inline type name(type* address, type value) {  \
    const type old = *address;                   \
    *address = static_cast<type>(expression);    \
    return old;                                  \
  }
#define CUDA_SHIM_ATOMICS(type)                                    \
  CUDA_SHIM_ATOMIC(atomicMax, type, old < value ? value : old)     \
  CUDA_SHIM_ATOMIC(atomicMin, type, value < old ? value : old)     \
  CUDA_SHIM_ATOMIC(atomicExch, type, value)                        \
  inline type atomicCAS(type* address, type compare, type value) { \
    const type old = *address;                                     \
    if (old == compare) *address = value;                          \
    return old;                                                    \
  }
CUDA_SHIM_ATOMICS(int)
CUDA_SHIM_ATOMICS(unsigned)
CUDA_SHIM_ATOMICS(unsigned long long)
CUDA_SHIM_ATOMIC(atomicAdd, int, static_cast<unsigned>(old) + static_cast<unsigned>(value))
CUDA_SHIM_ATOMIC(atomicAdd, unsigned, old + value)
CUDA_SHIM_ATOMIC(atomicAdd, unsigned long long, old + value)
CUDA_SHIM_ATOMIC(atomicAdd, float, old + value)
CUDA_SHIM_ATOMIC(atomicAdd, double, old + value)
CUDA_SHIM_ATOMIC(atomicOr, unsigned, old | value)
CUDA_SHIM_ATOMIC(atomicAnd, unsigned, old& value)
#undef CUDA_SHIM_ATOMIC
#undef CUDA_SHIM_ATOMICS

[[noreturn]] inline void __trap() { cuda_shim::fault("__trap"); }
