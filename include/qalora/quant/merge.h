// b' = b + k B A: what an adapter on pooled inputs adds is constant inside a group, so it belongs to the offset.
// QA-LoRA, arXiv:2309.14717, section 3.3 (w = scale * code + offset, so no division by the scale, sign plus).
#pragma once

#include <ATen/core/Tensor.h>

#include "qalora/io/adapter_file.h"
#include "qalora/quant/packed_weight.h"

namespace qalora::quant {

// k * (B A) as a change of the offsets [out_features, groups] f32, accumulated in double and rounded once.
// k = scaling (the module's own where it has one) for sum pooling; for mean pooling scaling / (length of the group),
// which for a shorter last group is its own. DataError (beginning with `name`) when shapes do not fit or the pooling is
// kNone.
at::Tensor offset_change(const std::string& name, const io::AdapterConfig& config, const io::AdapterWeights& adapter,
                         int64_t in_features, int64_t group_size);

// offsets + offset_change, added in double and rounded to f32 once. Everything else is shared with `base`.
PackedWeight merge(const std::string& name, const PackedWeight& base, const io::AdapterConfig& config,
                   const io::AdapterWeights& adapter);

}  // namespace qalora::quant
