// The differentiable pieces of a LLaMA layer that keep less for their backward pass than composed operators would.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

#include "qalora/quant/tiled_weight.h"

namespace qalora::model {

// What an accelerator's kernel writes beside its outputs for the linear layer that reads them; on the CPU nothing.
struct PoolRequest {
  int64_t group_size = 0;  // 0: no sums
  bool panel = false;      // the sums as columns behind the outputs too (quant::PooledInput)
};

// y = h / sqrt(mean(h^2) + eps) * weight in f32, returned in `dtype`. Keeps h and one number a token.
// h: [tokens, hidden] f32, weight: [hidden] f32
quant::PooledInput rms_norm(const at::Tensor& h, const at::Tensor& weight, double eps, at::ScalarType dtype,
                            const PoolRequest& pool = {});

// sum = h + residual, and rms_norm of it. residual: [tokens, hidden] in `dtype`
struct NormedSum {
  at::Tensor sum;  // [tokens, hidden] f32
  quant::PooledInput normed;
};
NormedSum add_rms_norm(const at::Tensor& h, const at::Tensor& residual, const at::Tensor& weight, double eps,
                       at::ScalarType dtype, const PoolRequest& pool = {});

// silu(gate) * up; keeps its two inputs. gate, up: [tokens, intermediate]
quant::PooledInput swiglu(const at::Tensor& gate, const at::Tensor& up, const PoolRequest& pool = {});

// Stretches [begin, end) of a row of tokens, as in text::Batch: they cover all of them, in order.
struct Segments {
  // device: where attention will run; on CUDA the borders are kept there too.
  Segments(std::vector<std::pair<int64_t, int64_t>> list, c10::Device device = c10::kCPU);

  std::vector<std::pair<int64_t, int64_t>> list;
  bool uniform = false;  // all of one length
  int64_t longest = 0;
  at::Tensor borders;  // [segments + 1] i32 on CUDA, where lengths differ; else undefined
};

// Causal attention within each segment. q: [tokens, heads, head_dim], k, v: [tokens, kv_heads, head_dim] -> [tokens,
// heads * head_dim]
at::Tensor attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const Segments& segments);

// Sum of -log softmax(hidden . head^T)[target] over all rows, as an f32 scalar, `chunk` rows of logits at a time; the
// gradient of hidden (and of the head when it requires one) is made in the same pass. hidden is rounded to the head's
// dtype; logits are f32. hidden: [n, hidden] f32, head: [vocab, hidden] f32 or 16 bits, targets: [n] i64, all valid ids
at::Tensor linear_cross_entropy(const at::Tensor& hidden, const at::Tensor& head, const at::Tensor& targets,
                                int64_t chunk);

// run(h) now, keeping only h; the backward pass runs it again with gradients. Parameters inside accumulate their .grad.
at::Tensor checkpointed(const at::Tensor& h, std::function<at::Tensor(const at::Tensor&)> run);

}  // namespace qalora::model
