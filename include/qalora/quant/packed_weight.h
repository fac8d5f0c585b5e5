// A quantised linear's weight in memory, and its way from and to tensors of a checkpoint.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>

#include "qalora/kernels/packed.h"

namespace qalora::quant {

// w = scales * codes + offsets (DESIGN: the one idea). Codes and scales never change; a merge moves only the offsets.
struct PackedWeight {
  at::Tensor codes;    // [out_features, words] i32 (the bits of u32)
  at::Tensor scales;   // [out_features, groups] f32
  at::Tensor offsets;  // [out_features, groups] f32
  int64_t in_features = 0;
  int64_t group_size = 0;  // the length of a whole group; in_features for whole-row groups
  int bits = 0;

  int64_t out_features() const { return codes.size(0); }
  int64_t groups() const { return scales.size(1); }
  kernels::PackedView view() const;
  uint64_t bytes() const;

  // [out_features, in_features] in dtype f32 or bf16, by all threads.
  at::Tensor dequantize(at::ScalarType dtype) const;
};

// group_size as written in files: a positive number, or kWholeRow.
inline constexpr int64_t kWholeRow = -1;
// Checks shapes, dtypes (scales and biases f32, f16 or bf16, widened to f32), finiteness. DataError begins with `name`.
PackedWeight make_packed_weight(const std::string& name, const at::Tensor& codes, const at::Tensor& scales, const at::Tensor& offsets,
                                int64_t in_features, int64_t group_size, int bits);

}  // namespace qalora::quant
