// What can still be gained once GPTQ has walked over the columns: the loss tr((W - Wq) H (W - Wq)^T) is a quadratic
// form in scales and offsets, and in each single code.
#pragma once

#include <ATen/core/Tensor.h>

#include "gptq_columns.h"

namespace qalora::quant {

// What is left of W - Wq, on H's device.
struct Residual {
  at::Tensor difference;  // [out_features, in_features] f32, W - Wq
  at::Tensor gradient;    // [out_features, in_features] f32, difference . H; the loss's slope is -2 of it
  at::Tensor losses;      // [out_features] f64

  double loss() const;
};

// weight, hessian: f32 on one device; hessian symmetric.
Residual residual_of(const at::Tensor& weight, const Rounded& rounded, const at::Tensor& hessian);
// The losses alone, for half the work. difference: [out_features, in_features] f32 on H's device -> [out_features] f64
at::Tensor losses_of(const at::Tensor& difference, const at::Tensor& hessian);

// The normal equations of scales and offsets: their part that all rows share.
class NormalEquations {
 public:
  // hessian: [in_features, in_features] f32; offsets: unknowns of their own, next to the scales
  NormalEquations(const at::Tensor& hessian, int64_t groups, int64_t group_size, bool offsets);
  int64_t unknowns() const { return offsets_ ? 2 * groups_ : groups_; }
  // codes: [rows, in_features] f32 from the origin; gradient: [rows, in_features] f32 -> [rows, unknowns] f64: changes
  // of the scales, and of the offsets behind them
  at::Tensor solve(const at::Tensor& codes, const at::Tensor& gradient) const;

 private:
  void fill_scale_block(const at::Tensor& codes, at::Tensor& left) const;

  int64_t groups_, size_;
  bool offsets_;
  at::Tensor hessian_, sums_, offset_block_;
};

// Both take the residual of `rounded` and leave it so. Rows whose loss would not fall stay as they are.

// Group after group: its scale and offset by least squares, then its codes one by one, each against all that the row
// has by then.
void improve_codes(const at::Tensor& weight, const at::Tensor& hessian, const GptqOptions& options, Residual& residual,
                   Rounded& rounded);
// Scales and offsets (scales only with integer zeros) by least squares, all groups of a row at once, codes fixed. Of
// the residual only the difference and the losses are kept.
void fit_scales(const at::Tensor& weight, const at::Tensor& hessian, const NormalEquations& equations,
                bool integer_zeros, Residual& residual, Rounded& rounded);

}  // namespace qalora::quant
