#include "qalora/model/linear_stack.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "qalora/core/error.h"

namespace qalora::model {
namespace {

bool can_stack(const std::vector<Linear*>& parts) {
  return std::all_of(parts.begin(), parts.end(), [&](const Linear* part) {
    if (part->tiled() == nullptr || part->input_order().defined()) return false;
    const auto &shape = part->tiled()->shape, &first = parts.front()->tiled()->shape;
    return shape.bits == first.bits && shape.group_size == first.group_size && shape.in_features == first.in_features &&
           shape.out_features % kernels::cuda::kTileRows == 0;
  });
}

template <typename Member>
at::Tensor joined(const std::vector<Linear*>& parts, Member member) {
  std::vector<at::Tensor> pieces;
  for (const Linear* part : parts) pieces.push_back(part->tiled()->*member);
  return at::cat(pieces);
}

}  // namespace

LinearStack::LinearStack(std::vector<Linear*> parts) {
  if (!can_stack(parts)) return;
  using quant::TiledWeight;
  whole_ = std::make_shared<TiledWeight>();
  whole_->shape = parts.front()->tiled()->shape;
  whole_->shape.out_features = 0;
  for (const Linear* part : parts) whole_->shape.out_features += part->tiled()->shape.out_features;
  // Row tiles are independent of each other: lane order of the stack is that of its parts, one behind the other.
  whole_->codes = joined(parts, &TiledWeight::codes);
  whole_->scales = joined(parts, &TiledWeight::scales);
  whole_->offsets = joined(parts, &TiledWeight::offsets);
  int64_t code = 0, group = 0;
  for (Linear* part : parts) {
    TiledWeight view = *part->tiled();
    const int64_t codes = view.shape.code_words(), groups = view.shape.group_floats();
    view.codes = whole_->codes.narrow(0, code, codes);
    view.scales = whole_->scales.narrow(0, group, groups);
    view.offsets = whole_->offsets.narrow(0, group, groups);
    part->set_tiled(std::move(view));
    code += codes;
    group += groups;
  }
}

bool LinearStack::serves(const std::vector<const Linear*>& parts, const DropoutKey& dropout) const {
  if (!whole_) return false;
  if (trains(dropout)) {
    folded_.drop();
    return false;
  }
  return std::all_of(parts.begin(), parts.end(), [&](const Linear* part) {
    // A part whose weight was replaced is no longer a view of the stack.
    const bool ours = part->tiled() != nullptr && part->tiled()->codes.storage().is_alias_of(whole_->codes.storage()) &&
                      part->tiled()->offsets.storage().is_alias_of(whole_->offsets.storage());
    return ours && (!part->adapter || part->folds(dropout));
  });
}

std::vector<at::Tensor> LinearStack::forward(const std::vector<const Linear*>& parts,
                                             const quant::PooledInput& x) const {
  const bool adapted =
      std::any_of(parts.begin(), parts.end(), [](const Linear* part) { return part->adapter != nullptr; });
  const at::Tensor& offsets = !adapted ? whole_->offsets : folded_.get(parts, [&] {
    std::vector<at::Tensor> pieces;
    for (const Linear* part : parts) pieces.push_back(part->folded_offsets());
    return at::cat(pieces);
  });
  const at::Tensor y = whole_->multiply(x, offsets);
  std::vector<at::Tensor> outputs;
  int64_t row = 0;
  for (const Linear* part : parts) {
    const at::Tensor own = y.narrow(1, row, part->out_features());
    outputs.push_back(part->bias.defined() ? (own + part->bias).to(y.scalar_type()) : own);
    row += part->out_features();
  }
  return outputs;
}

}  // namespace qalora::model
