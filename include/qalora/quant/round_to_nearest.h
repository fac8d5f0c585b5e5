// Asymmetric min-max rounding, group by group: scale = (max - min) / (2^bits - 1), offset = min,
// code = clamp(round((w - offset) / scale)). QA-LoRA, arXiv:2309.14717, eq. 1.
#pragma once

#include "qalora/quant/packed_weight.h"

namespace qalora::quant {

struct QuantizeResult {
  PackedWeight weight;
  double error = 0;  // relative Frobenius norm ||w - w_quantised|| / ||w||, 0 for an all-zero matrix
};

// weight: [out_features, in_features] f32/f16/bf16. bits 2, 3, 4. group_size > 0 or kWholeRow; when it does not divide
// in_features the last group is shorter. A constant group gets scale 0 and is exact. The scale is an fp32 number; the
// codes are chosen against the fp32 scale and offset that are stored. DataError begins with `name` when a weight is not
// finite.
QuantizeResult round_to_nearest(const std::string& name, const at::Tensor& weight, int bits, int64_t group_size);

}  // namespace qalora::quant
