// What an export cost: how far the weights that another engine reads are from the model's.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "qalora/quant/packed_weight.h"

namespace qalora::exporting {

struct TensorReport {
  std::string tensor;
  double largest_error =
      0;  // max |dw| / |scale of its group|, in steps of the grid; of a dense weight max |dw| / largest |w|
  int64_t subnormal = 0;  // numbers that became subnormal 16-bit ones and lost digits
  int64_t flushed = 0;    // that were not zero and became so
  int64_t overflow = 0;   // that were finite and no longer are

  bool lossless() const { return largest_error == 0; }
};

// Counts into `report` what rounding `exact` [..] f32 to `rounded` (the same shape, F16 or BF16) did.
void count_rounding(const at::Tensor& exact, const at::Tensor& rounded, TensorReport& report);

// Raises report.largest_error to that of `written` beside `exact`: the same codes' shape and group size, other scales
// or offsets.
void compare_packed(const quant::PackedWeight& exact, const quant::PackedWeight& written, TensorReport& report);

// The same of dense weights, both [out_features, in_features]; exact is f32.
void compare_dense(const at::Tensor& exact, const at::Tensor& written, TensorReport& report);

struct ReportTotals {
  double largest_error = 0;
  int64_t subnormal = 0, flushed = 0, overflow = 0, lossless = 0;
};
ReportTotals totals(const std::vector<TensorReport>& reports);
// The `count` reports with the largest errors, those first.
std::vector<TensorReport> worst(const std::vector<TensorReport>& reports, size_t count);

}  // namespace qalora::exporting
