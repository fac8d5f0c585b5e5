// A quantised linear's weight on an accelerator, in lane order (kernels/cuda.h), and its products.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>

#include "qalora/kernels/cuda.h"
#include "qalora/quant/packed_weight.h"

namespace qalora::quant {

// A layer's input and what the kernel that made it wrote beside it. Only `values` takes part in autograd.
struct PooledInput {
  PooledInput(at::Tensor x) : values(std::move(x)) {}  // NOLINT: any tensor is an input without sums
  PooledInput(at::Tensor x, at::Tensor s, at::Tensor c)
      : values(std::move(x)),
        sums(std::move(s)),
        panel(std::move(c)) {}

  at::Tensor values;  // [tokens, in_features]
  at::Tensor sums;    // [tokens, groups] f32 or undefined
  at::Tensor panel;   // [tokens, in_features + 2 * groups], of which `values` are the first columns and the sums the
                      // others; or undefined
};

struct TiledWeight {
  kernels::cuda::TiledShape shape;
  at::Tensor codes;    // [code_words] i32
  at::Tensor scales;   // [group_floats] f32
  at::Tensor offsets;  // [group_floats] f32

  uint64_t bytes() const { return codes.nbytes() + scales.nbytes() + offsets.nbytes(); }
  kernels::cuda::TiledView view(const at::Tensor& these_offsets) const;

  // offsets + scaling * B A in f32, in lane order: what a merge would write. a: [rank, groups], b: [out_features, rank]
  // f32
  at::Tensor folded(const at::Tensor& a, const at::Tensor& b, double scaling) const;
  // s * q + these_offsets: [out_features, in_features] in f32, bf16 or f16
  at::Tensor dequantize(at::ScalarType dtype, const at::Tensor& these_offsets) const;
  // x . W^T with these offsets: [tokens, out_features] in x's dtype. In 16 bits the offsets act through the inputs'
  // sums (kernels.md 2.4), so that neither an adapter nor a merge drowns in rounded weights: nothing of an offset is
  // lost, while a panel rounds the sums to 16 bits (2^-9 in bf16).
  at::Tensor multiply(const PooledInput& x, const at::Tensor& these_offsets) const;
  // Does a product of so many tokens take its input as a panel, or as values and sums?
  bool wants_panel(int64_t tokens, at::ScalarType dtype) const;
  // The two steps of it for many tokens: the weight with these offsets as columns of its own (empty_panel), and the
  // product with it.
  at::Tensor panel(at::ScalarType dtype, const at::Tensor& these_offsets) const;
  at::Tensor multiply_panel(const PooledInput& x, const at::Tensor& weight_panel) const;
};

// Onto the accelerator. UserError that begins with `name` where its kernels have no such shape
// (kernels::cuda::supports).
TiledWeight tile(const std::string& name, const PackedWeight& weight, c10::Device device);
// [out_features, groups] f32 on any device -> lane order on the weight's device
at::Tensor to_lane_order(const TiledWeight& weight, const at::Tensor& offsets);

// A panel of in_features + 2 * groups columns whose rows start at 16 bytes. options: of 16-bit numbers
at::Tensor empty_panel(int64_t rows, int64_t in_features, int64_t groups, const at::TensorOptions& options);
kernels::cuda::Type kernel_type(at::ScalarType dtype);  // f32, bf16, f16

}  // namespace qalora::quant
