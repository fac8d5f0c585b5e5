// From a dense checkpoint to a quantised one, tensor by tensor: memory follows the largest tensor, not the model.
#pragma once

#include <cstdint>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "qalora/io/checkpoint.h"
#include "qalora/model/config.h"
#include "qalora/quant/packed_weight.h"

namespace qalora::model {

// What quantising would do, known from names and shapes alone.
struct QuantizePlan {
  LlamaConfig config;          // of the dense source
  nlohmann::json config_json;  // its config.json
  QuantizationConfig quantization;
  std::vector<io::PlannedTensor> tensors;      // in the order in which they are written
  int64_t linears = 0;                         // matrices that are packed; everything else is copied byte for byte
  uint64_t input_bytes = 0, output_bytes = 0;  // of all tensors
  uint64_t disk_bytes = 0;                     // what the output needs, files beside the weights included
  uint64_t peak_bytes = 0;                     // estimated largest memory of the process
  double bits_per_weight = 0;                  // of the packed matrices, scales and offsets included
  std::vector<std::string> notes;              // what the person should know: shorter last groups, what MLX cannot read
};

// UserError when the checkpoint is quantised already; DataError when a tensor is missing, unknown, of another shape
// than config.json says or of a dtype that is not a float, or when a file beside the weights cannot be copied.
QuantizePlan plan_quantization(const io::Checkpoint& checkpoint, const QuantizationConfig& quantization);

struct QuantizedLayer {
  std::string name;  // "model.layers.0.self_attn.q_proj"
  double error = 0;  // relative Frobenius norm of what rounding changed
};

// The packed weight of a linear layer. module: "model.layers.0.self_attn.q_proj"
using PackedProducer = std::function<quant::PackedWeight(const std::string& module)>;

// Writes the planned checkpoint, with config.json and the tokenizer's files, into a folder that appears whole or not at
// all: what is not packed is copied byte for byte. replace: an existing `out` gives way once the new one is complete.
void write_quantized_checkpoint(const io::Checkpoint& checkpoint, const QuantizePlan& plan, const fs::path& out,
                                bool replace, const PackedProducer& produce);

// DataError naming file and tensor where a value is not finite. tensor: `name` as the checkpoint has it, any shape and
// float dtype
void require_finite(const io::Checkpoint& checkpoint, const std::string& name, const at::Tensor& tensor);

// Rounded to nearest.
std::vector<QuantizedLayer> quantize_checkpoint(const io::Checkpoint& checkpoint, const QuantizePlan& plan,
                                                const fs::path& out, bool replace);

}  // namespace qalora::model
