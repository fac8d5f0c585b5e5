// What the kernels that walk rows share: chunks of a row in registers, sums over a warp and a block, sums of groups.
#pragma once

#include <cstring>
#include <type_traits>

#include "kernels/cuda/elementwise.h"

namespace qalora::kernels::cuda {

__device__ __forceinline__ int lane_index() { return static_cast<int>(threadIdx.x) % kWarp; }
__device__ __forceinline__ int warp_index() { return static_cast<int>(threadIdx.x) / kWarp; }

template <typename To, typename From>
__device__ __forceinline__ To bits_of(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}

template <typename T>
__device__ __forceinline__ T round_to(float value) {
  if constexpr (std::is_same_v<T, float>) return value;
  if constexpr (std::is_same_v<T, __nv_bfloat16>) return __float2bfloat16_rn(value);
  if constexpr (std::is_same_v<T, __half>) return __float2half_rn(value);
}

// kCount neighbouring elements of a row as they lie in memory, 8 or 16 bytes.
template <typename T, int kCount>
struct Chunk {
  static constexpr int kWords = kCount * static_cast<int>(sizeof(T)) / 4;
  static_assert(kWords == 2 || kWords == 4);
  using Vector = std::conditional_t<kWords == 4, uint4, uint2>;

  uint32_t words[kWords];

  template <bool kAligned>
  __device__ __forceinline__ void load(const T* from) {
    if constexpr (kAligned) {
      const Vector vector = *reinterpret_cast<const Vector*>(from);
      memcpy(words, &vector, sizeof words);
    } else {
      T elements[kCount];
#pragma unroll
      for (int i = 0; i < kCount; ++i) elements[i] = from[i];
      memcpy(words, elements, sizeof words);
    }
  }

  template <bool kAligned>
  __device__ __forceinline__ void store(T* to) const {
    if constexpr (kAligned) {
      Vector vector;
      memcpy(&vector, words, sizeof words);
      *reinterpret_cast<Vector*>(to) = vector;
    } else {
      store_some(to, kCount);
    }
  }

  // The first `count` elements, all of them where there are more; the others keep what they held.
  template <bool kAligned>
  __device__ __forceinline__ void load(const T* from, int count) {
    if (kAligned && count >= kCount) return load<kAligned>(from);
    T elements[kCount];
    memcpy(elements, words, sizeof words);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (i < count) elements[i] = from[i];
    }
    memcpy(words, elements, sizeof words);
  }

  template <bool kAligned>
  __device__ __forceinline__ void store(T* to, int count) const {
    if (kAligned && count >= kCount) return store<kAligned>(to);
    store_some(to, count);
  }

  __device__ __forceinline__ void store_some(T* to, int count) const {
    T elements[kCount];
    memcpy(elements, words, sizeof words);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (i < count) to[i] = elements[i];
    }
  }

  __device__ __forceinline__ void fill(uint32_t word) {
#pragma unroll
    for (int i = 0; i < kWords; ++i) words[i] = word;
  }

  __device__ __forceinline__ void unpack(float (&values)[kCount]) const {
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      if constexpr (std::is_same_v<T, float>) {
        values[i] = __uint_as_float(words[i]);
      } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
        values[2 * i] = __uint_as_float(words[i] << 16);
        values[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
      } else {
        const float2 pair = __half22float2(bits_of<__half2>(words[i]));
        values[2 * i] = pair.x;
        values[2 * i + 1] = pair.y;
      }
    }
  }

  // The one rounding of an output.
  __device__ __forceinline__ void pack(const float (&values)[kCount]) {
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      if constexpr (std::is_same_v<T, float>) {
        words[i] = __float_as_uint(values[i]);
      } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
        words[i] = bits_of<uint32_t>(__floats2bfloat162_rn(values[2 * i], values[2 * i + 1]));
      } else {
        words[i] = bits_of<uint32_t>(__floats2half2_rn(values[2 * i], values[2 * i + 1]));
      }
    }
  }
};

// kCount floats that no kernel writes while this one runs (a norm's weight, a rotation's cosines).
template <bool kAligned, int kCount>
__device__ __forceinline__ void load_constants(const float* from, float (&values)[kCount], int count = kCount) {
  if (kAligned && count >= kCount) {
#pragma unroll
    for (int i = 0; i < kCount; i += 4) {
      const float4 four = __ldg(reinterpret_cast<const float4*>(from + i));
      values[i] = four.x, values[i + 1] = four.y, values[i + 2] = four.z, values[i + 3] = four.w;
    }
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) values[i] = i < count ? __ldg(from + i) : 0.0f;
  }
}

// Of all lanes, the same bits in each: a sum of two does not depend on their order.
__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) value += __shfl_xor_sync(kAllLanes, value, step);
  return value;
}

__device__ __forceinline__ float warp_max(float value) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) value = fmaxf(value, __shfl_xor_sync(kAllLanes, value, step));
  return value;
}

// Of a block of whole warps, in every thread. slots: [kWarpSlots] in shared memory, for this call alone.
__device__ __forceinline__ float block_sum(float value, float* slots) {
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  value = warp_sum(value);
  if (lane_index() == 0) slots[warp_index()] = value;
  __syncthreads();
  return warp_sum(lane_index() < warps ? slots[lane_index()] : 0.0f);
}

// The fast one is off by about 4 + 2 |x| units of 2^-24 of itself: below a 16-bit output's rounding, not below f32's.
template <typename T>
__device__ __forceinline__ float exponential(float x) {
  if constexpr (std::is_same_v<T, float>) return expf(x);
  return exp2_approx(x * 1.44269504f);
}

// The sums of the groups of one row. The order of each sum depends on the group alone, never on the kernel or its
// block: whoever makes a row's outputs gets the same bits.
template <typename T>
struct GroupSums {
  const Pooling& pooling;
  float* sums;     // [groups] of this row, or null
  T* columns;      // [2 * groups] behind this row's outputs, or null
  float* partial;  // shared: a sum for each 32 elements of this block's stretch of the row
  int first;       // element at which that stretch begins, a multiple of the group

  __device__ __forceinline__ GroupSums(const Pooling& pooling, int64_t row, T* behind, float* partial, int first)
      : pooling(pooling),
        sums(pooling.sums == nullptr ? nullptr : pooling.sums + row * pooling.groups),
        columns(pooling.columns ? behind : nullptr),
        partial(partial),
        first(first) {}

  __device__ __forceinline__ void write(int group, float sum) const {
    if (sums != nullptr) sums[group] = sum;
    if (columns == nullptr) return;
    const T rounded = round_to<T>(sum);
    columns[group] = rounded;
    columns[pooling.groups + group] = rounded;
  }

  // Called by whole warps: each lane brings outputs element .. element + kCount - 1, the lanes' one after the other. A
  // warp's begin at a multiple of the group, or of 32 where a group leaves the warp. An inactive lane adds nothing;
  // those of 32 neighbours are so together.
  template <int kCount>
  __device__ __forceinline__ void add(int element, bool active, const float (&outputs)[kCount]) const {
    if (pooling.group_size == 0) return;
    float pairs[kCount];
#pragma unroll
    for (int i = 0; i < kCount; ++i) pairs[i] = active ? outputs[i] : 0.0f;
#pragma unroll
    for (int step = 1; step < kCount; step *= 2) {
#pragma unroll
      for (int i = 0; i < kCount; i += 2 * step) pairs[i] += pairs[i + step];
    }
    float sum = pairs[0];
    constexpr int kUnitLanes = kPoolUnit / kCount;
#pragma unroll
    for (int step = 1; step < kUnitLanes; step *= 2) sum += __shfl_xor_sync(kAllLanes, sum, step);
    if (pooling.shift == 0) {
      if (active && lane_index() % kUnitLanes == 0) partial[static_cast<unsigned>(element - first) / kPoolUnit] = sum;
      return;
    }
    const int lanes = (1 << pooling.shift) / kCount;
#pragma unroll 1
    for (int step = kUnitLanes; step < lanes; step *= 2) sum += __shfl_xor_sync(kAllLanes, sum, step);
    if (active && (lane_index() & (lanes - 1)) == 0) write(element >> pooling.shift, sum);
  }

  // Called by the whole block once all outputs up to `end` are in.
  __device__ __forceinline__ void finish(int end) const {
    if (pooling.group_size == 0 || pooling.shift != 0) return;
    __syncthreads();
    const int units = pooling.group_size / kPoolUnit, present = (end - first) / kPoolUnit,
              warps = static_cast<int>(blockDim.x) / kWarp;
    for (int group = warp_index(); group * units < present; group += warps) {
      const int stop = min(present, (group + 1) * units);
      float sum = 0;
#pragma unroll 1
      for (int i = group * units + lane_index(); i < stop; i += kWarp) sum += partial[i];
      sum = warp_sum(sum);
      if (lane_index() == 0) write(first / pooling.group_size + group, sum);
    }
  }
};

}  // namespace qalora::kernels::cuda
