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
  at::Tensor
      input_order;  // [in_features] i64: column k is of input input_order[k] (io/input_order.h); undefined: of input k
  int64_t in_features = 0;
  int64_t group_size = 0;  // the length of a whole group; in_features for whole-row groups
  int bits = 0;

  int64_t out_features() const { return codes.size(0); }
  int64_t groups() const { return scales.size(1); }
  kernels::PackedView view() const;
  uint64_t bytes() const;

  // [out_features, in_features] in dtype f32 or bf16, by all threads; columns as the inputs come. In bf16 a small
  // change of the offsets is rounded away: for gradients only; products use multiply.
  at::Tensor dequantize(at::ScalarType dtype) const;

  // x . W^T, x as the inputs come. x: [tokens, in_features] f32 or bf16 -> [tokens, out_features] f32. With more than a
  // few tokens in bf16 the codes' part is a bf16 product and the offsets' part stays f32, so that what a merge put into
  // them is not lost (kernels.md, fact 6).
  at::Tensor multiply(const at::Tensor& x) const;
};

// Sums of each group of inputs. x: [tokens, in_features] f32 or bf16 -> [tokens, groups] f32; the last group may be
// shorter.
at::Tensor pool_sums(const at::Tensor& x, int64_t group_size);

// group_size as written in files: a positive number, or kWholeRow.
inline constexpr int64_t kWholeRow = -1;
// Widths of codes that are read: 2, 3, 4, 5, 6, 8.
bool is_bits(int64_t bits);
// Checks shapes, dtypes (scales and biases f32, f16 or bf16, widened to f32), finiteness. DataError begins with `name`.
PackedWeight make_packed_weight(const std::string& name, const at::Tensor& codes, const at::Tensor& scales,
                                const at::Tensor& offsets, int64_t in_features, int64_t group_size, int bits);

}  // namespace qalora::quant
