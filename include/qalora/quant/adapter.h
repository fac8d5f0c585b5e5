// A fresh adapter: Xavier-uniform A, zero B, so that the first forward pass is the base's.
#pragma once

#include "qalora/io/adapter_file.h"

namespace qalora::quant {

struct LinearShape {
  std::string module;  // "model.layers.0.self_attn.q_proj"
  int64_t out_features = 0;
  int64_t in_features = 0;
  int64_t adapter_inputs = 0;  // groups (or in_features for an ordinary LoRA): A is [rank, adapter_inputs]
};

// A ~ U(-a, a), a = sqrt(6 / (adapter_inputs + rank)); each matrix from a stream of its own (seed, module).
io::AdapterFile new_adapter(const io::AdapterConfig& config, const std::vector<LinearShape>& shapes, uint64_t seed);

}  // namespace qalora::quant
