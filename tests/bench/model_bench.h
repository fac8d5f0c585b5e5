// Training and decoding of a whole model of a given shape with random weights made on the device: no checkpoint of that
// size is needed.
#pragma once

#include <c10/core/Device.h>

#include <cstdint>
#include <nlohmann/json_fwd.hpp>

#include "qalora/model/llama.h"

namespace qalora::bench {

struct ModelBench {
  model::LlamaConfig config;
  int bits = 4;  // 0: a dense base in bf16 without adapters, of which only the inputs' gradients are asked
  int64_t group_size = 32, rank = 64;
  int64_t row_tokens = 1024;  // packed rows of examples with the lengths of an instruction set
  int64_t rows = 8;           // of one micro-batch
  int64_t micro_batches = 1;  // of one step
  model::Recompute recompute = model::Recompute::kNothing;
  int64_t steps = 4;          // timed, after one that is not
  int64_t decode_tokens = 0;  // 0: none
};

model::LlamaConfig llama_shape(int64_t billions);  // 7, 13, 70

// {"tokens_per_second", "seconds_per_step", "peak_bytes", "estimated_bytes", "decode_tokens_per_second"}, in bf16.
nlohmann::json run_model_bench(const ModelBench& bench, c10::Device device);

}  // namespace qalora::bench
