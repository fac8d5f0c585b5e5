// What the comparisons with other projects' logits share.
#pragma once

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include "qalora/model/llama.h"

namespace qalora::model {

// Rows of one length, each a segment of its own. ids: [rows, positions] i64
inline text::Batch batch_of(const at::Tensor& ids) {
  text::Batch batch;
  batch.input_ids = ids;
  batch.positions = at::arange(ids.size(1), at::kLong).unsqueeze(0).expand_as(ids).contiguous();
  for (int64_t row = 0; row < ids.size(0); ++row)
    batch.segments.push_back({row * ids.size(1), (row + 1) * ids.size(1)});
  return batch;
}

// -> [rows, positions, vocab] f32
inline at::Tensor logits_of(Llama& model, const at::Tensor& ids) {
  const c10::NoGradGuard no_grad;
  return model.logits(model.forward(batch_of(ids))).reshape({ids.size(0), ids.size(1), -1});
}

inline double distance(const at::Tensor& a, const at::Tensor& b) { return (a - b).abs().max().item<double>(); }

}  // namespace qalora::model
