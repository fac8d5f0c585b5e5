// GPTQ's walk over the columns: round one, hand its error on to those that follow.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "qalora/quant/gptq.h"

namespace qalora::quant {

// A quantised matrix while it is being worked on, on the CPU.
struct Rounded {
  at::Tensor codes;            // [out_features, in_features] u8
  at::Tensor scales, offsets;  // [out_features, groups] f32
  int64_t group_size = 0;      // in_features for whole rows
  int bits = 0;

  int64_t rows() const { return codes.size(0); }
  int64_t columns() const { return codes.size(1); }
  int64_t groups() const { return scales.size(1); }
  at::Tensor dense() const;  // [out_features, in_features] f32
};

// The order in which columns are rounded. diagonal: [in_features] f32, of H, on the CPU.
std::vector<int64_t> column_order(const at::Tensor& diagonal, int64_t group_size, const GptqOptions& options);

struct InverseFactor {
  at::Tensor upper;  // [in_features, in_features] f32, U of (H + damping)^-1 = U^T U, rows and columns in the order of
                     // rounding
  double damping = 0;  // as a share of the mean diagonal
};
// hessian: [in_features, in_features] f32 with dead inputs' diagonal filled in, as it stands; order: of rounding.
// DataError when no damping up to a hundred times the mean diagonal gives a factor. At most two more matrices of H's
// size at once.
InverseFactor inverse_factor(const std::string& name, const at::Tensor& hessian, const std::vector<int64_t>& order,
                             double damping);

// Grids of all groups from the weights as they are, where options.static_groups. weight: [out_features, in_features]
// f32 CPU; importance: [in_features] f32 CPU. Codes are left at zero.
Rounded static_grids(const at::Tensor& weight, const at::Tensor& importance, int64_t group_size,
                     const GptqOptions& options);

// weight: [out_features, in_features] f32 on the factor's device, columns in the order of rounding; it is used up.
// `rounded` brings the grids where options.static_groups, else gets them; it gets the codes.
void round_columns(at::Tensor weight, const at::Tensor& factor, const std::vector<int64_t>& order,
                   const at::Tensor& importance, const GptqOptions& options, Rounded& rounded);

}  // namespace qalora::quant
