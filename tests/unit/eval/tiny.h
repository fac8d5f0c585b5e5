// A small random model for the tests of eval.
#pragma once

#include <ATen/core/grad_mode.h>

#include <cstdint>
#include <vector>

#include "qalora/eval/scorer.h"
#include "qalora/model/load.h"
#include "qalora/tensor/random.h"

namespace qalora::test {

inline model::LlamaConfig tiny_config(int64_t context_length = 128, int64_t vocab_size = 97) {
  model::LlamaConfig config;
  config.model_type = "llama";
  config.vocab_size = vocab_size;
  config.hidden_size = 48;
  config.intermediate_size = 80;
  config.layers = 2;
  config.heads = 4;
  config.kv_heads = 2;
  config.head_dim = 12;
  config.context_length = context_length;
  config.norm_eps = 1e-5;
  config.initializer_range = 0.5;  // large enough that scores differ by far more than rounding
  return config;
}

inline std::vector<int64_t> random_ids(uint64_t index, int64_t length, int64_t vocab_size = 97) {
  tensor::RandomStream random(7, "test ids", index);
  std::vector<int64_t> ids;
  for (int64_t i = 0; i < length; ++i)
    ids.push_back(static_cast<int64_t>(random.below(static_cast<uint64_t>(vocab_size))));
  return ids;
}

}  // namespace qalora::test
