// What matvec and matmul share: the activations, the outputs, and the arithmetic at the end of a group.
#pragma once

#include "kernels/cuda/unpack.h"

namespace qalora::kernels::cuda {

struct Activations {
  const uint16_t* data;  // [rows, stride] bf16 or fp16, 16-byte aligned rows
  int64_t stride;
  const float* sums;  // [rows, groups]
  int rows;

  Activations(const void* x, int64_t stride, const float* sums, int64_t rows)
      : data(static_cast<const uint16_t*>(x)),
        stride(stride),
        sums(sums),
        rows(static_cast<int>(rows)) {}
};

struct Outputs {
  void* data;  // [rows, stride] of `type`
  int64_t stride;
  Type type;

  __device__ __forceinline__ void store(int64_t row, int64_t column, float value) const {
    const int64_t i = row * stride + column;
    if (type == Type::kFloat) static_cast<float*>(data)[i] = value;
    else if (type == Type::kBFloat16) static_cast<__nv_bfloat16*>(data)[i] = __float2bfloat16_rn(value);
    else static_cast<__half*>(data)[i] = __float2half_rn(value);
  }
  // Columns column .. + 3, in one piece: their place must be aligned to four elements.
  __device__ __forceinline__ void store_four(int64_t row, int64_t column, float4 values) const {
    const int64_t i = row * stride + column;
    if (type == Type::kFloat) {
      *reinterpret_cast<float4*>(static_cast<float*>(data) + i) = values;
      return;
    }
    uint2 words;
    if (type == Type::kBFloat16) {
      words = make_uint2(word_of(__floats2bfloat162_rn(values.x, values.y)),
                         word_of(__floats2bfloat162_rn(values.z, values.w)));
    } else {
      words =
          make_uint2(word_of(__floats2half2_rn(values.x, values.y)), word_of(__floats2half2_rn(values.z, values.w)));
    }
    *reinterpret_cast<uint2*>(static_cast<uint16_t*>(data) + i) = words;
  }
};

// b_c = b + s c: what multiplies a group's sum of inputs when its codes are centred.
template <int kBits>
__device__ __forceinline__ float centred_offset(float scale, float offset) {
  return __fmaf_rn(scale, static_cast<float>(centre_of(kBits)), offset);
}

// sums += part, scaled: low for row r, high for row r + 8.
__device__ __forceinline__ void add_scaled(const float (&part)[4], float low, float high, float (&sums)[4]) {
  sums[0] = __fmaf_rn(part[0], low, sums[0]);
  sums[1] = __fmaf_rn(part[1], low, sums[1]);
  sums[2] = __fmaf_rn(part[2], high, sums[2]);
  sums[3] = __fmaf_rn(part[3], high, sums[3]);
}

Status check_product(const TiledView& weight, const void* x, int64_t x_stride, Type x_type, const float* sums,
                     int64_t rows, const void* y, int64_t y_stride, Type y_type);

// Calls run.operator()<bits, type>().
template <typename Run>
Status by_bits_and_type(int bits, Type type, Run run) {
  const bool half = type == Type::kHalf;
  switch (bits) {
    case 2: return half ? run.template operator()<2, __half>() : run.template operator()<2, __nv_bfloat16>();
    case 3: return half ? run.template operator()<3, __half>() : run.template operator()<3, __nv_bfloat16>();
    default: return half ? run.template operator()<4, __half>() : run.template operator()<4, __nv_bfloat16>();
  }
}

}  // namespace qalora::kernels::cuda
