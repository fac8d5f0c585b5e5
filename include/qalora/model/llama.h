// The LLaMA decoder. Matrix products run in the compute dtype; norms, rotary embedding, softmax, the residual stream
// and the logits are f32 whatever that is.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "qalora/model/config.h"
#include "qalora/model/linear.h"
#include "qalora/model/linear_stack.h"
#include "qalora/model/rope.h"
#include "qalora/text/batch.h"

namespace qalora::model {

// Keys and values of the tokens seen so far, one row.
struct KvCache {
  std::vector<at::Tensor> keys, values;  // per layer [capacity, kv_heads, head_dim], grown by doubling
  int64_t length = 0;

  int64_t capacity() const { return keys.empty() || !keys.front().defined() ? 0 : keys.front().size(0); }
};

struct Layer {
  at::Tensor attention_norm, mlp_norm;  // [hidden] f32
  at::Tensor q_norm, k_norm;            // [head_dim] f32; undefined where the model has none
  Linear q, k, v, o, gate, up, down;
  LinearStack qkv, gate_up;  // on an accelerator

  void to(c10::Device device);
};

// The parts of a layer by their names in a checkpoint, below layer_prefix(i): the one list that everything goes by.
template <typename Part>
struct Named {
  const char* name;
  Part Layer::*member;
};
inline constexpr Named<at::Tensor> kLayerNorms[] = {{"input_layernorm", &Layer::attention_norm},
                                                    {"post_attention_layernorm", &Layer::mlp_norm}};
inline constexpr Named<at::Tensor> kHeadNorms[] = {{"self_attn.q_norm", &Layer::q_norm},
                                                   {"self_attn.k_norm", &Layer::k_norm}};
inline constexpr Named<Linear> kProjections[] = {{"self_attn.q_proj", &Layer::q}, {"self_attn.k_proj", &Layer::k},
                                                 {"self_attn.v_proj", &Layer::v}, {"self_attn.o_proj", &Layer::o},
                                                 {"mlp.gate_proj", &Layer::gate}, {"mlp.up_proj", &Layer::up},
                                                 {"mlp.down_proj", &Layer::down}};
std::string layer_prefix(int64_t index);  // "model.layers.0."

// What of a layer is computed again in the backward pass instead of being kept.
enum class Recompute {
  kNothing,
  kMlp,    // norm, gate, up and their product: two thirds of what a layer keeps, for two thirds of its products
  kLayer,  // all but its input
};

struct ForwardOptions {
  DropoutKey dropout;
  Recompute recompute = Recompute::kNothing;
};

class Llama {
 public:
  LlamaConfig config;
  at::ScalarType compute = at::kFloat;
  at::Tensor embedding;  // [vocab, hidden]
  std::vector<Layer> layers;
  at::Tensor final_norm;  // [hidden] f32
  at::Tensor head;  // [vocab, hidden]; the embedding itself when tied. f32, on an accelerator in the compute dtype

  // Hidden states after the final norm: [rows * length, hidden] f32. Sequences longer than the context are a UserError.
  // Padding and other segments never influence a token.
  at::Tensor forward(const text::Batch& batch, const ForwardOptions& options = {});
  // ids: [tokens] i64 of one row that continues the cache -> [tokens, hidden] f32; the cache grows.
  at::Tensor forward_cached(const at::Tensor& ids, KvCache& cache);
  // Room in the cache for so many tokens in all, so that its tensors need not move before.
  void reserve(KvCache& cache, int64_t tokens) const;
  // The same for one token at `position` (i64 [1] on the device), with nothing that depends on its value but numbers on
  // the device: the kernels can be recorded once and run for every position below the cache's capacity. Neither the id
  // nor cache.length is looked at.
  at::Tensor forward_at(const at::Tensor& id, const at::Tensor& position, KvCache& cache);
  // hidden: [n, hidden] f32 -> [n, vocab] f32. n * vocab * 4 bytes: callers chunk.
  at::Tensor logits(const at::Tensor& hidden) const;
  // Sum over rows with target != text::kIgnore of -log softmax(logits)[target], f32 scalar with gradients for hidden
  // (and the head when it is trained). Never holds more than a chunk of logits. hidden: [n, hidden] f32, targets: [n]
  // i64
  at::Tensor loss_sum(const at::Tensor& hidden, const at::Tensor& targets) const;

  c10::Device device() const { return embedding.device(); }
  void to(c10::Device device);
  std::vector<Linear*> linears();
  uint64_t weight_bytes() const;
  uint64_t forward_flops_per_token(int64_t length) const;

 private:
  const Rope& rope_for(int64_t length);
  Rope rope_;
};

}  // namespace qalora::model
