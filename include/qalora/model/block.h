// One decoder layer in the steps that lie between its matrix products: the forward pass is made of them, and
// calibration walks through them one by one.
#pragma once

#include <initializer_list>

#include "qalora/model/functions.h"
#include "qalora/model/llama.h"

namespace qalora::model {

// cos and sin of each token's position: [tokens, head_dim] f32
struct Rotation {
  at::Tensor cos, sin;
};

// What the layers that read the next `tokens` activations want beside them. Sums are of one group size: readers whose
// sizes differ get none, and each makes its own.
PoolRequest pool_for(std::initializer_list<const Linear*> readers, int64_t tokens, at::ScalarType dtype);

// What q, k and v read: the norm of h in `compute`. h: [tokens, hidden] f32
quant::PooledInput attention_input(const LlamaConfig& config, at::ScalarType compute, const Layer& layer,
                                   const at::Tensor& h);

// q and k rotated: [tokens, heads or kv_heads, head_dim]
struct Heads {
  at::Tensor q, k, v;
};
Heads attention_heads(const LlamaConfig& config, const Layer& layer, const quant::PooledInput& x,
                      const Rotation& rotation, const DropoutKey& dropout);

// What gate and up read. middle: [tokens, hidden] f32
quant::PooledInput mlp_input(const LlamaConfig& config, at::ScalarType compute, const Layer& layer,
                             const at::Tensor& middle);

// What down reads. y: mlp_input's
quant::PooledInput mlp_product(const Layer& layer, const quant::PooledInput& y, const DropoutKey& dropout);

}  // namespace qalora::model
