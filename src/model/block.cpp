#include "qalora/model/block.h"

#include <ATen/ATen.h>

namespace qalora::model {
namespace {

// The outputs of layers that read the same input.
std::vector<at::Tensor> together(const LinearStack& stack, const std::vector<const Linear*>& parts,
                                 const quant::PooledInput& x, const DropoutKey& dropout) {
  if (stack.serves(parts, dropout)) return stack.forward(parts, x);
  std::vector<at::Tensor> outputs;
  for (const Linear* part : parts) outputs.push_back(part->forward(x, dropout));
  return outputs;
}

// Each head by itself, before the rotation. x: [tokens, heads, head_dim], weight: [head_dim] f32 or undefined
at::Tensor norm_heads(const at::Tensor& x, const at::Tensor& weight, double eps) {
  if (!weight.defined()) return x;
  const at::Tensor rows = x.reshape({-1, x.size(2)}).to(at::kFloat).contiguous();
  return rms_norm(rows, weight, eps, x.scalar_type()).values.reshape(x.sizes());
}

}  // namespace

PoolRequest pool_for(std::initializer_list<const Linear*> readers, int64_t tokens, at::ScalarType dtype) {
  const Linear& reader = **readers.begin();
  if (reader.tiled() == nullptr || reader.input_order().defined()) return {};
  for (const Linear* other : readers) {
    if (other->tiled() != nullptr && other->tiled()->shape.group_size != reader.tiled()->shape.group_size) return {};
  }
  return {reader.tiled()->shape.group_size, reader.tiled()->wants_panel(tokens, dtype)};
}

quant::PooledInput attention_input(const LlamaConfig& config, at::ScalarType compute, const Layer& layer,
                                   const at::Tensor& h) {
  return rms_norm(h, layer.attention_norm, config.norm_eps, compute,
                  pool_for({&layer.q, &layer.k, &layer.v}, h.size(0), compute));
}

Heads attention_heads(const LlamaConfig& config, const Layer& layer, const quant::PooledInput& x,
                      const Rotation& rotation, const DropoutKey& dropout) {
  const int64_t tokens = x.values.size(0);
  const std::vector<at::Tensor> qkv = together(layer.qkv, {&layer.q, &layer.k, &layer.v}, x, dropout);
  const at::Tensor q =
      norm_heads(qkv[0].reshape({tokens, config.heads, config.head_dim}), layer.q_norm, config.norm_eps);
  const at::Tensor k =
      norm_heads(qkv[1].reshape({tokens, config.kv_heads, config.head_dim}), layer.k_norm, config.norm_eps);
  const at::Tensor v = qkv[2].reshape({tokens, config.kv_heads, config.head_dim});
  return {Rope::apply(q, rotation.cos, rotation.sin), Rope::apply(k, rotation.cos, rotation.sin), v};
}

quant::PooledInput mlp_input(const LlamaConfig& config, at::ScalarType compute, const Layer& layer,
                             const at::Tensor& middle) {
  return rms_norm(middle, layer.mlp_norm, config.norm_eps, compute,
                  pool_for({&layer.gate, &layer.up}, middle.size(0), compute));
}

quant::PooledInput mlp_product(const Layer& layer, const quant::PooledInput& y, const DropoutKey& dropout) {
  const std::vector<at::Tensor> gate_up = together(layer.gate_up, {&layer.gate, &layer.up}, y, dropout);
  return swiglu(gate_up[0], gate_up[1], pool_for({&layer.down}, y.values.size(0), y.values.scalar_type()));
}

}  // namespace qalora::model
