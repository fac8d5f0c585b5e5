// Barriers and what the lanes of a warp do together. Stricter than the hardware: a lane outside its own mask, a mask
// that names a lane that has ended, or a value taken from a lane outside the mask is a fault, where the manual says
// "undefined".
#pragma once

#include <cstdint>

#include "engine.h"
#include "intrinsics.h"

inline void __syncthreads() { cuda_shim::block_barrier("__syncthreads", false); }
inline int __syncthreads_count(int predicate) {
  return cuda_shim::block_barrier("__syncthreads_count", predicate != 0);
}
inline int __syncthreads_or(int predicate) { return cuda_shim::block_barrier("__syncthreads_or", predicate != 0) > 0; }
inline int __syncthreads_and(int predicate) {
  return cuda_shim::block_barrier("__syncthreads_and", predicate == 0) == 0;
}

namespace cuda_shim {

template <typename T>
struct ShuffleOperand {
  T value;
  int source;  // lane
  T result;
};

template <typename T>
void execute_shuffle(unsigned mask, void* const* operands) {
  for (int i = 0; i < kLanes; ++i) {
    if (!(mask >> i & 1)) continue;
    auto& to = *static_cast<ShuffleOperand<T>*>(operands[i]);
    if (!(mask >> to.source & 1)) fault("a shuffle reads lane %d, which is not in the mask 0x%08x", to.source, mask);
    to.result = static_cast<const ShuffleOperand<T>*>(operands[to.source])->value;
  }
}

template <typename T>
T shuffle(const char* operation, unsigned mask, T value, int source) {
  static_assert(sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8, "CUDA shuffles 2, 4 and 8 bytes");
  ShuffleOperand<T> operand{value, source, value};
  meet_warp(operation, mask, &operand, execute_shuffle<T>);
  return operand.result;
}

// Of the segment of `width` lanes that this lane lies in.
inline int check_width(int width) {
  if (width < 1 || width > kLanes || (width & (width - 1)))
    fault("a shuffle's width of %d is not a power of two up to 32", width);
  return lane() & ~(width - 1);
}

// kind: 0 sum, 1 smallest, 2 largest, 3 and, 4 or, 5 xor
template <typename T, int kKind>
void execute_reduce(unsigned mask, void* const* operands) {
  T total{};
  bool first = true;
  for (int i = 0; i < kLanes; ++i) {
    if (!(mask >> i & 1)) continue;
    const T value = *static_cast<const T*>(operands[i]);
    if (first) total = value;
    else if (kKind == 0) total = static_cast<T>(static_cast<unsigned>(total) + static_cast<unsigned>(value));
    else if (kKind == 1) total = value < total ? value : total;
    else if (kKind == 2) total = total < value ? value : total;
    else if (kKind == 3) total &= value;
    else if (kKind == 4) total |= value;
    else total ^= value;
    first = false;
  }
  for (int i = 0; i < kLanes; ++i) {
    if (mask >> i & 1) *static_cast<T*>(operands[i]) = total;
  }
}
template <typename T, int kKind>
T reduce(const char* operation, unsigned mask, T value) {
  meet_warp(operation, mask, &value, execute_reduce<T, kKind>);
  return value;
}

inline void execute_nothing(unsigned, void* const*) {}
inline void execute_ballot(unsigned mask, void* const* operands) {
  unsigned set = 0;
  for (int i = 0; i < kLanes; ++i) {
    if ((mask >> i & 1) && *static_cast<const unsigned*>(operands[i])) set |= 1u << i;
  }
  for (int i = 0; i < kLanes; ++i) {
    if (mask >> i & 1) *static_cast<unsigned*>(operands[i]) = set;
  }
}
inline unsigned ballot(const char* operation, unsigned mask, bool predicate) {
  unsigned value = predicate;
  meet_warp(operation, mask, &value, execute_ballot);
  return value;
}

}  // namespace cuda_shim

inline void __syncwarp(unsigned mask = 0xffffffffu) {
  char nothing = 0;
  cuda_shim::meet_warp("__syncwarp", mask, &nothing, cuda_shim::execute_nothing);
}

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  const int first = cuda_shim::check_width(width);
  return cuda_shim::shuffle("__shfl_sync", mask, value, first + (source & (width - 1)));
}
// The three below keep a lane's own value when the source lies outside its segment.
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const int first = cuda_shim::check_width(width), own = cuda_shim::lane(), source = own - static_cast<int>(delta);
  return cuda_shim::shuffle("__shfl_up_sync", mask, value, source < first ? own : source);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const int first = cuda_shim::check_width(width), own = cuda_shim::lane(), source = own + static_cast<int>(delta);
  return cuda_shim::shuffle("__shfl_down_sync", mask, value, source >= first + width ? own : source);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32) {
  const int first = cuda_shim::check_width(width), own = cuda_shim::lane(), source = own ^ lane_mask;
  // An earlier segment may be read, a later one not (manual, "Warp shuffle functions").
  return cuda_shim::shuffle("__shfl_xor_sync", mask, value, source >= first + width ? own : source);
}

inline unsigned __ballot_sync(unsigned mask, int predicate) {
  return cuda_shim::ballot("__ballot_sync", mask, predicate != 0);
}
inline int __any_sync(unsigned mask, int predicate) {
  return cuda_shim::ballot("__any_sync", mask, predicate != 0) != 0;
}
inline int __all_sync(unsigned mask, int predicate) {
  return cuda_shim::ballot("__all_sync", mask, predicate == 0) == 0;
}

#define CUDA_SHIM_REDUCE(type, name, kind) \
  inline type name(unsigned mask, type value) { return cuda_shim::reduce<type, kind>(#name, mask, value); }
CUDA_SHIM_REDUCE(unsigned, __reduce_add_sync, 0)
CUDA_SHIM_REDUCE(int, __reduce_add_sync, 0)
CUDA_SHIM_REDUCE(unsigned, __reduce_min_sync, 1)
CUDA_SHIM_REDUCE(int, __reduce_min_sync, 1)
CUDA_SHIM_REDUCE(unsigned, __reduce_max_sync, 2)
CUDA_SHIM_REDUCE(int, __reduce_max_sync, 2)
CUDA_SHIM_REDUCE(unsigned, __reduce_and_sync, 3)
CUDA_SHIM_REDUCE(unsigned, __reduce_or_sync, 4)
CUDA_SHIM_REDUCE(unsigned, __reduce_xor_sync, 5)
#undef CUDA_SHIM_REDUCE
