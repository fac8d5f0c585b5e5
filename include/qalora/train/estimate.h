// What a run will need, told before its first step.
#pragma once

#include <cstdint>
#include <string>

#include "qalora/model/llama.h"
#include "qalora/train/config.h"

namespace qalora::train {

struct MemoryEstimate {  // bytes
  uint64_t weights = 0;      // base, embedding, head
  uint64_t trained = 0;      // parameters, gradients and both moments, f32
  uint64_t activations = 0;  // kept for the backward pass of the largest micro-batch
  uint64_t scratch = 0;      // one dequantised layer, a chunk of logits and its gradient
  uint64_t total() const { return weights + trained + activations + scratch; }
};

// rows x length: the largest micro-batch. trained_elements: numbers that the optimizer moves.
MemoryEstimate estimate_memory(const model::Llama& model, const TrainConfig& config, int64_t rows, int64_t length, int64_t trained_elements);

// Multiplications of one trained token: forward, input gradient, and what else the method needs.
double flops_per_token(const model::Llama& model, const TrainConfig& config, int64_t length);
// Products per second of this machine in the compute dtype, measured for about 50 ms.
double measure_flops(at::ScalarType dtype, int64_t size);

}  // namespace qalora::train
