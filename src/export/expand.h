// An adapter on pooled inputs as the ordinary LoRA that computes the same: each column of A once for every input of its
// group.
#pragma once

#include <ATen/core/Tensor.h>

#include "qalora/export/export.h"

namespace qalora::exporting {

// DataError when the adapter does not belong to this model: another base, modules that it lacks, other shapes.
void check_adapter(const Source& source);

// k A over all inputs: [rank, in_features] f64, so that what is added to the weight is B times it.
at::Tensor expanded_a(const Source& source, const std::string& module, int64_t in_features);

}  // namespace qalora::exporting
