#include "qalora/train/estimate.h"

#include <ATen/ATen.h>

#include <chrono>

namespace qalora::train {

MemoryEstimate estimate_memory(const model::Llama& model, const TrainConfig& config, int64_t rows, int64_t length, int64_t trained_elements) {
  const model::LlamaConfig& c = model.config;
  const uint64_t tokens = static_cast<uint64_t>(rows * length), element = c10::elementSize(model.compute);
  const uint64_t hidden = c.hidden_size, q = c.heads * c.head_dim, kv = c.kv_heads * c.head_dim, inner = c.intermediate_size;
  MemoryEstimate result;
  result.weights = model.weight_bytes();
  // Value, gradient, two moments; for "full" the value is already among the weights.
  result.trained = static_cast<uint64_t>(trained_elements) * 4 * (config.full() ? 3 : 4);
  // Kept by a layer: two residual states in f32; q, k, v after rotation, the attention's output and its statistics, gate and
  // up. Dense products with a trained weight or an ordinary LoRA keep their inputs as well, pooled ones 1/group of them.
  uint64_t layer = 2 * 4 * hidden + element * (q + 2 * kv + q + 2 * inner) + 4 * static_cast<uint64_t>(c.heads);
  const uint64_t inputs = 2 * hidden + q + inner;
  if (config.method == "qalora") {
    const int64_t group = c.quantization ? std::max<int64_t>(1, c.quantization->group_size) : 32;
    layer += 4 * inputs / static_cast<uint64_t>(group) + 4 * 7 * static_cast<uint64_t>(config.rank);
  } else {
    layer += inputs * element + (config.full() ? 0 : 4 * inputs);
  }
  const uint64_t kept_layers = config.gradient_checkpointing ? 1 : static_cast<uint64_t>(c.layers);
  result.activations = tokens * (layer * kept_layers + (config.gradient_checkpointing ? 4 * hidden * static_cast<uint64_t>(c.layers) : 0));
  // Transient: the largest dequantised matrix, three intermediate rows of the MLP in f32, the logits of 512 tokens three times.
  result.scratch = inner * hidden * element + tokens * 3 * 4 * inner + uint64_t{512} * 4 * 3 * static_cast<uint64_t>(c.vocab_size);
  return result;
}

double flops_per_token(const model::Llama& model, const TrainConfig& config, int64_t length) {
  const double forward = static_cast<double>(model.forward_flops_per_token(length / 2));
  // A frozen base costs one product forward and one for the input's gradient; trained weights one more; recomputing one more.
  return forward * (2.0 + (config.full() ? 1.0 : 0.0) + (config.gradient_checkpointing ? 1.0 : 0.0));
}

double measure_flops(at::ScalarType dtype, int64_t size) {
  using clock = std::chrono::steady_clock;
  const at::Tensor x = at::ones({256, size}, dtype), w = at::ones({size, size}, dtype);
  x.matmul(w);  // threads and buffers are set up by the first product
  const auto start = clock::now();
  double seconds = 0;
  int64_t count = 0;
  do {
    x.matmul(w);
    ++count;
    seconds = std::chrono::duration<double>(clock::now() - start).count();
  } while (seconds < 0.05);
  return 2.0 * 256 * static_cast<double>(size) * static_cast<double>(size) * static_cast<double>(count) / seconds;
}

}  // namespace qalora::train
