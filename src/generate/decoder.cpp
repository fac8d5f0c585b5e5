#include "qalora/generate/decoder.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "qalora/core/error.h"

namespace qalora::generate {

namespace {

constexpr int64_t kLeastCapacity = 256;

}  // namespace

Decoder::Decoder(model::Llama& model)
    : model_(model),
      // The dynamic kind of rotation changes all its angles with the sequence's length.
      recordable_(!model.device().is_cpu() && model.config.rope.kind != model::RopeKind::kDynamic) {
  if (!recordable_) return;
  id_ = at::zeros({1}, at::TensorOptions(model.device()).dtype(at::kLong));
  position_ = at::zeros_like(id_);
  logits_ = at::empty({1, model.config.vocab_size}, id_.options().dtype(at::kFloat));
}

at::Tensor Decoder::next(const std::vector<int64_t>& ids) {
  if (ids.size() != 1 || !recordable_) {
    graph_.reset();  // the cache may move, and with it what was recorded
    warm_ = false;
    const at::Tensor input = at::tensor(at::IntArrayRef(ids), at::kLong).to(model_.device());
    const at::Tensor hidden = model_.forward_cached(input, cache_);  // [tokens, hidden] f32
    return model_.logits(hidden.narrow(0, hidden.size(0) - 1, 1))[0];
  }
  QALORA_REQUIRE(ids[0] >= 0 && ids[0] < model_.config.vocab_size, DataError, "token id ", ids[0],
                 " is outside the model's vocabulary of ", model_.config.vocab_size);
  make_room();
  id_.fill_(ids[0]);
  position_.fill_(cache_.length);
  if (graph_) {
    graph_->replay();
  } else if (!warm_) {
    run_token();
    warm_ = true;
  } else {
    graph_ = tensor::accelerator()->record(model_.device().index(), [this] { run_token(); });
    graph_->replay();
  }
  ++cache_.length;
  return logits_[0];
}

// The cache's tensors stay where they are until the next doubling; a recording of the old ones is of no use then.
void Decoder::make_room() {
  if (cache_.length < cache_.capacity() && (warm_ || graph_)) return;
  const int64_t wanted =
      std::max({kLeastCapacity, cache_.capacity(), cache_.length < cache_.capacity() ? 0 : 2 * cache_.length});
  graph_.reset();
  warm_ = false;
  model_.reserve(cache_, std::min(wanted, model_.config.context_length));
  QALORA_REQUIRE(cache_.length < cache_.capacity(), UserError, "the model's context of ", model_.config.context_length,
                 " tokens is full");
}

void Decoder::run_token() { logits_.copy_(model_.logits(model_.forward_at(id_, position_, cache_))); }

}  // namespace qalora::generate
