#include "qalora/model/llama.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <limits>

#include "qalora/core/error.h"
#include "qalora/model/block.h"
#include "qalora/model/functions.h"
#include "qalora/tensor/products.h"

namespace qalora::model {

namespace {

// Rows of logits held at a time: 512 x 32,000 x 4 bytes = 66 MB.
constexpr int64_t kLossChunk = 512;
constexpr int64_t kDeviceLossChunk = 2048;  // a GPU wants larger products: 262 MB

// mask: [1, 1, 1 or fresh, total] bool or undefined
at::Tensor attend_rows(const at::Tensor& q, const at::Tensor& keys, const at::Tensor& values, const at::Tensor& mask,
                       bool causal) {
  const auto row = [](const at::Tensor& t) { return t.unsqueeze(0).transpose(1, 2); };  // [1, heads, length, head_dim]
  const at::Tensor out = at::scaled_dot_product_attention(
      row(q), row(keys), row(values), mask.defined() ? std::optional<at::Tensor>(mask) : std::nullopt, 0.0, causal,
      std::nullopt,
      /*enable_gqa=*/q.size(1) != keys.size(1));
  return out.transpose(1, 2).reshape({q.size(0), q.size(1) * q.size(2)});
}

// One token: the query heads that share a key head stand as so many rows of it, for the mask is the same for all.
// q: [1, heads, head_dim], keys, values: [capacity, kv_heads, head_dim], mask: [1, 1, 1, capacity] -> [1, heads *
// head_dim]
at::Tensor attend_one(const at::Tensor& q, const at::Tensor& keys, const at::Tensor& values, const at::Tensor& mask) {
  const int64_t kv_heads = keys.size(1), shared = q.size(1) / kv_heads;
  const auto row = [](const at::Tensor& t) { return t.unsqueeze(0).transpose(1, 2); };
  const at::Tensor out = at::scaled_dot_product_attention(q.view({1, kv_heads, shared, q.size(2)}), row(keys),
                                                          row(values), mask.expand({1, 1, shared, keys.size(0)}));
  return out.reshape({1, q.size(1) * q.size(2)});
}

// One new position of a cached row attends to everything before it; several at once need the causal border spelled out.
at::Tensor attend_cached(const at::Tensor& q, const at::Tensor& keys, const at::Tensor& values) {
  const int64_t fresh = q.size(0), total = keys.size(0);
  at::Tensor mask;
  if (fresh > 1 && fresh < total) mask = at::ones({fresh, total}, q.options().dtype(at::kBool)).tril_(total - fresh);
  return attend_rows(q, keys, values, mask, /*causal=*/fresh > 1 && fresh == total);
}

void require_known_ids(const at::Tensor& ids, int64_t vocab_size) {
  const int64_t low = ids.min().item<int64_t>(), high = ids.max().item<int64_t>();
  QALORA_REQUIRE(low >= 0 && high < vocab_size, DataError, "token id ", low < 0 ? low : high,
                 " is outside the model's vocabulary of ", vocab_size, "; does the tokenizer belong to this model?");
}

// A buffer [capacity, kv_heads, head_dim] of which the first `used` rows are kept. Nothing happens when it has as many
// already.
void enlarge(at::Tensor& buffer, int64_t used, int64_t capacity, const at::Tensor& like) {
  if (buffer.defined() && buffer.size(0) >= capacity) return;
  // Zeros: a masked position takes part with weight 0, and 0 times what lies in fresh memory may be NaN.
  at::Tensor larger = at::zeros({capacity, like.size(1), like.size(2)}, like.options());
  if (used > 0) larger.narrow(0, 0, used).copy_(buffer.narrow(0, 0, used));
  buffer = larger;
}

// Room for `needed` rows, doubling.
void grow(at::Tensor& buffer, int64_t used, int64_t needed, const at::Tensor& like) {
  const int64_t capacity = buffer.defined() ? buffer.size(0) : 0;
  if (needed > capacity) enlarge(buffer, used, std::max(needed, 2 * capacity), like);
}

void move(at::Tensor& value, c10::Device device) {
  if (value.device() != device) value = value.detach().to(device).requires_grad_(value.requires_grad());
}

// A layer up to its first residual sum. attend(q, k, v), with q and k rotated: [tokens, heads or kv_heads, head_dim]
// each -> [tokens, heads * head_dim]
template <typename Attend>
at::Tensor run_attention(const Llama& model, const Layer& layer, const at::Tensor& h, const Rotation& rotation,
                         const DropoutKey& dropout, const Attend& attend) {
  const quant::PooledInput x = attention_input(model.config, model.compute, layer, h);
  const auto [q, k, v] = attention_heads(model.config, layer, x, rotation, dropout);
  return layer.o.forward(attend(q, k, v), dropout);
}

// The rest of it. middle: [tokens, hidden] f32, y: its norm
at::Tensor run_mlp(const Layer& layer, const at::Tensor& middle, const quant::PooledInput& y,
                   const DropoutKey& dropout) {
  return at::add(middle, layer.down.forward(mlp_product(layer, y, dropout), dropout));
}

template <typename Attend>
at::Tensor run_layer(const Llama& model, const Layer& layer, const at::Tensor& h, const Rotation& rotation,
                     const DropoutKey& dropout, const Attend& attend) {
  const at::Tensor change = run_attention(model, layer, h, rotation, dropout, attend);
  const auto [middle, y] = add_rms_norm(h, change, layer.mlp_norm, model.config.norm_eps, model.compute,
                                        pool_for({&layer.gate, &layer.up}, h.size(0), model.compute));
  return run_mlp(layer, middle, y, dropout);
}

// The same, keeping of the second half only where it starts.
template <typename Attend>
at::Tensor run_layer_recomputing_mlp(const Llama& model, const Layer& layer, const at::Tensor& h,
                                     const Rotation& rotation, const DropoutKey& dropout, const Attend& attend) {
  const at::Tensor start = at::add(h, run_attention(model, layer, h, rotation, dropout, attend));  // f32
  return checkpointed(start, [&model, &layer, dropout](const at::Tensor& middle) {
    return run_mlp(layer, middle, mlp_input(model.config, model.compute, layer, middle), dropout);
  });
}

}  // namespace

std::string layer_prefix(int64_t index) { return "model.layers." + std::to_string(index) + "."; }

const Rope& Llama::rope_for(int64_t length) {
  QALORA_REQUIRE(length <= config.context_length, UserError, "a sequence of ", length,
                 " tokens is longer than the model's context of ", config.context_length,
                 "; shorten it (--sequence-length, --context-length or --max-tokens)");
  // The dynamic kind beyond its trained length depends on the sequence's length; all others only need a table long
  // enough.
  const bool exact =
      config.rope.kind == RopeKind::kDynamic && std::max(length, rope_.length()) > config.rope.original_context;
  if (exact ? rope_.length() != length : rope_.length() < length) {
    const int64_t room = exact ? length : std::min(config.context_length, std::max<int64_t>(256, 2 * length));
    const bool dynamic = config.rope.kind == RopeKind::kDynamic;
    rope_ = Rope(config, dynamic && !exact ? std::min(room, config.rope.original_context) : room, device());
  }
  return rope_;
}

at::Tensor Llama::forward(const text::Batch& batch, const ForwardOptions& options) {
  require_known_ids(batch.input_ids, config.vocab_size);
  const Rope& rope = rope_for(batch.length());
  const auto [cos, sin] = rope.at(batch.positions.reshape({-1}).to(device()));
  const Rotation rotation{cos, sin};
  at::Tensor h =
      at::embedding(embedding, batch.input_ids.reshape({-1}).to(device())).to(at::kFloat);  // [tokens, hidden]
  const Segments segments(batch.segments, device());
  const Recompute recompute = c10::GradMode::is_enabled() ? options.recompute : Recompute::kNothing;
  // What is recomputed is only visited by the backward pass when its input asks for a gradient.
  if (recompute != Recompute::kNothing && !h.requires_grad()) h.requires_grad_(true);
  for (const Layer& layer : layers) {
    // Everything but the model is captured by value (tensors share their storage): the backward pass comes after this
    // call returned.
    const auto run = [this, &layer, rotation, segments, dropout = options.dropout, recompute](const at::Tensor& input) {
      const auto attend = [&](const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
        return attention(q, k, v, segments);
      };
      return recompute == Recompute::kMlp ? run_layer_recomputing_mlp(*this, layer, input, rotation, dropout, attend)
                                          : run_layer(*this, layer, input, rotation, dropout, attend);
    };
    h = recompute == Recompute::kLayer ? checkpointed(h, run) : run(h);
  }
  return rms_norm(h, final_norm, config.norm_eps, at::kFloat).values;
}

at::Tensor Llama::forward_cached(const at::Tensor& ids, KvCache& cache) {
  const int64_t tokens = ids.size(0), total = cache.length + tokens;
  require_known_ids(ids, config.vocab_size);
  const Rope& rope = rope_for(total);
  const auto [cos, sin] = rope.at(at::arange(cache.length, total, ids.options()));
  const Rotation rotation{cos, sin};
  cache.keys.resize(config.layers);
  cache.values.resize(config.layers);
  at::Tensor h = at::embedding(embedding, ids).to(at::kFloat);
  for (int64_t i = 0; i < config.layers; ++i) {
    h = run_layer(*this, layers[i], h, rotation, {},
                  [&](const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
                    grow(cache.keys[i], cache.length, total, k);
                    grow(cache.values[i], cache.length, total, v);
                    cache.keys[i].narrow(0, cache.length, tokens).copy_(k);
                    cache.values[i].narrow(0, cache.length, tokens).copy_(v);
                    return attend_cached(q, cache.keys[i].narrow(0, 0, total), cache.values[i].narrow(0, 0, total));
                  });
  }
  cache.length = total;
  return rms_norm(h, final_norm, config.norm_eps, at::kFloat).values;
}

void Llama::reserve(KvCache& cache, int64_t tokens) const {
  cache.keys.resize(config.layers);
  cache.values.resize(config.layers);
  const at::Tensor like =
      at::empty({0, config.kv_heads, config.head_dim}, embedding.options().dtype(compute).requires_grad(false));
  for (int64_t i = 0; i < config.layers; ++i) {
    enlarge(cache.keys[i], cache.length, tokens, like);
    enlarge(cache.values[i], cache.length, tokens, like);
  }
}

at::Tensor Llama::forward_at(const at::Tensor& id, const at::Tensor& position, KvCache& cache) {
  const auto [cos, sin] = rope_for(cache.capacity()).at(position);
  const Rotation rotation{cos, sin};
  // Positions behind this one hold nothing yet, or something of a longer past.
  const at::Tensor unseen = at::arange(cache.capacity(), position.options()).gt(position);
  const at::Tensor mask =
      at::zeros({1, 1, 1, cache.capacity()}, embedding.options().dtype(compute).requires_grad(false))
          .masked_fill(unseen, -std::numeric_limits<double>::infinity());
  at::Tensor h = at::embedding(embedding, id).to(at::kFloat);
  for (int64_t i = 0; i < config.layers; ++i) {
    h = run_layer(*this, layers[i], h, rotation, {},
                  [&](const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
                    cache.keys[i].index_copy_(0, position, k);
                    cache.values[i].index_copy_(0, position, v);
                    return attend_one(q, cache.keys[i], cache.values[i], mask);
                  });
  }
  return rms_norm(h, final_norm, config.norm_eps, at::kFloat).values;
}

at::Tensor Llama::logits(const at::Tensor& hidden) const {
  return tensor::product_f32(hidden.to(head.scalar_type()), head.t());
}

at::Tensor Llama::loss_sum(const at::Tensor& hidden, const at::Tensor& targets) const {
  // Rows without a target are dropped before the head's product: on instruction data that is most of them.
  // Counted where the targets are, usually on the CPU: a device would have to be waited for.
  const at::Tensor counted = targets.ne(text::kIgnore).nonzero().squeeze(1);
  const at::Tensor wanted = targets.index_select(0, counted).to(device());
  return linear_cross_entropy(hidden.index_select(0, counted.to(device())), head, wanted,
                              device().is_cpu() ? kLossChunk : kDeviceLossChunk);
}

void Layer::to(c10::Device device) {
  for (const auto& norm : kLayerNorms) move(this->*norm.member, device);
  for (const auto& norm : kHeadNorms) {
    if ((this->*norm.member).defined()) move(this->*norm.member, device);
  }
  for (const auto& projection : kProjections) (this->*projection.member).to(device);
  qkv = LinearStack({&q, &k, &v});
  gate_up = LinearStack({&gate, &up});
}

void Llama::to(c10::Device device) {
  const bool tied = head.is_same(embedding);
  move(embedding, device);
  move(final_norm, device);
  if (tied) head = embedding;
  move(head, device);
  for (Layer& layer : layers) layer.to(device);
}

std::vector<Linear*> Llama::linears() {
  std::vector<Linear*> result;
  for (Layer& layer : layers) {
    for (const auto& projection : kProjections) result.push_back(&(layer.*projection.member));
  }
  return result;
}

uint64_t Llama::weight_bytes() const {
  uint64_t total = embedding.nbytes() + (config.tied_head ? 0 : head.nbytes());
  for (const Layer& layer : layers) {
    for (const auto& projection : kProjections) total += (layer.*projection.member).weight_bytes();
  }
  return total;
}

uint64_t Llama::forward_flops_per_token(int64_t length) const {
  const int64_t q = config.heads * config.head_dim, kv = config.kv_heads * config.head_dim;
  const int64_t linear =
      config.layers * (config.hidden_size * (2 * q + 2 * kv) + 3 * config.hidden_size * config.intermediate_size);
  return static_cast<uint64_t>(2 * linear + 2 * config.layers * q * length +
                               2 * config.vocab_size * config.hidden_size);
}

}  // namespace qalora::model
