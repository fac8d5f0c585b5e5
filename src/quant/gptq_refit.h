// What can still be gained once GPTQ has walked over the columns: the loss tr((W - Wq) H (W - Wq)^T) is a quadratic form in scales and
// offsets, and in each single code.
#pragma once

#include <ATen/core/Tensor.h>

#include "gptq_columns.h"

namespace qalora::quant {

// (W - Wq), its product with H, and the loss of every row, on H's device.
struct Residual {
  at::Tensor difference;  // [out_features, in_features] f32
  at::Tensor gradient;    // [out_features, in_features] f32, difference . H; the loss's slope is -2 of it
  at::Tensor losses;      // [out_features] f64

  double loss() const;
};
Residual residual_of(const at::Tensor& weight, const at::Tensor& quantised, const at::Tensor& hessian);

// weight, hessian: f32 on one device; hessian undamped. Rows whose loss would not fall stay as they are.

// Scales and offsets (scales only with integer zeros) by least squares, all groups of a row at once, codes fixed.
void fit_scales(const at::Tensor& weight, const at::Tensor& hessian, bool integer_zeros, Rounded& rounded);
// Group after group: its scale and offset by least squares, then its codes one by one, each against all that the row has by then.
void improve_codes(const at::Tensor& weight, const at::Tensor& hessian, const GptqOptions& options, Rounded& rounded);

}  // namespace qalora::quant
