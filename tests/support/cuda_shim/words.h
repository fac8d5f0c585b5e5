// CUDA's keywords, index variables and vector types for the host compiler.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(bytes) alignas(bytes)
// __shared__ stays unknown: a static array could not be fenced. Kernels ask for dynamic_shared.

// name, component type, alignment in bytes: CUDA C++ programming guide, "Built-in vector types". UBSan checks each
// access's alignment.
#define CUDA_SHIM_VECTOR2(name, type, alignment) \
  struct alignas(alignment) name {               \
    type x, y;                                   \
  };                                             \
  inline name make_##name(type x, type y) { return {x, y}; }
#define CUDA_SHIM_VECTOR3(name, type) \
  struct name {                       \
    type x, y, z;                     \
  };                                  \
  inline name make_##name(type x, type y, type z) { return {x, y, z}; }
#define CUDA_SHIM_VECTOR4(name, type, alignment) \
  struct alignas(alignment) name {               \
    type x, y, z, w;                             \
  };                                             \
  inline name make_##name(type x, type y, type z, type w) { return {x, y, z, w}; }

CUDA_SHIM_VECTOR2(char2, signed char, 2)
CUDA_SHIM_VECTOR2(uchar2, unsigned char, 2)
CUDA_SHIM_VECTOR2(short2, short, 4)
CUDA_SHIM_VECTOR2(ushort2, unsigned short, 4)
CUDA_SHIM_VECTOR2(int2, int, 8)
CUDA_SHIM_VECTOR2(uint2, unsigned, 8)
CUDA_SHIM_VECTOR2(float2, float, 8)
CUDA_SHIM_VECTOR2(double2, double, 16)
CUDA_SHIM_VECTOR2(longlong2, long long, 16)
CUDA_SHIM_VECTOR2(ulonglong2, unsigned long long, 16)
CUDA_SHIM_VECTOR3(int3, int)
CUDA_SHIM_VECTOR3(uint3, unsigned)
CUDA_SHIM_VECTOR3(float3, float)
CUDA_SHIM_VECTOR4(char4, signed char, 4)
CUDA_SHIM_VECTOR4(uchar4, unsigned char, 4)
CUDA_SHIM_VECTOR4(short4, short, 8)
CUDA_SHIM_VECTOR4(ushort4, unsigned short, 8)
CUDA_SHIM_VECTOR4(int4, int, 16)
CUDA_SHIM_VECTOR4(uint4, unsigned, 16)
CUDA_SHIM_VECTOR4(float4, float, 16)

#undef CUDA_SHIM_VECTOR2
#undef CUDA_SHIM_VECTOR3
#undef CUDA_SHIM_VECTOR4

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
  constexpr dim3(uint3 from) : x(from.x), y(from.y), z(from.z) {}
  constexpr operator uint3() const { return {x, y, z}; }
};

// Of the thread that runs now; the engine sets them whenever it switches.
extern __thread uint3 threadIdx, blockIdx, blockDim, gridDim;
constexpr int warpSize = 32;

using cudaStream_t = struct CUstream_st*;
enum cudaError_t { cudaSuccess = 0 };
