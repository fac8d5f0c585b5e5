#include "inspect_model.h"

#include <algorithm>

#include "qalora/core/checked.h"
#include "qalora/core/error.h"
#include "qalora/io/adapter_file.h"
#include "qalora/io/checkpoint.h"
#include "qalora/io/torch_file.h"
#include "qalora/model/load.h"

namespace qalora::cli {
namespace {

nlohmann::json tensor_entry(const std::string& name, const io::TensorInfo& info) {
  return {{"name", name}, {"dtype", io::dtype_name(info.dtype)}, {"shape", info.shape}};
}

struct LinearSizes {
  uint64_t bytes = 0, weights = 0;  // as stored, scales and offsets included
  uint64_t resident[2] = {0, 0};    // in memory, computing in f32 and in bf16
  uint64_t largest = 0;             // weights of the largest matrix
};

LinearSizes linear_sizes(const io::Checkpoint& checkpoint, const model::LlamaConfig& config) {
  LinearSizes sizes;
  for (const auto& tensor : model::expected_tensors(config)) {
    if (!tensor.linear) continue;
    const uint64_t weights = static_cast<uint64_t>(tensor.shape[0]) * static_cast<uint64_t>(tensor.shape[1]);
    sizes.weights += weights;
    sizes.largest = std::max(sizes.largest, weights);
    sizes.bytes += checkpoint.info(tensor.name).bytes();
    if (!model::is_packed(checkpoint, tensor.name)) {
      sizes.resident[0] += 4 * weights;
      sizes.resident[1] += 2 * weights;
      continue;
    }
    const std::string module = tensor.name.substr(0, tensor.name.rfind('.'));
    uint64_t widened = checkpoint.info(tensor.name).bytes();
    for (const char* part : {".scales", ".biases"}) {
      const io::TensorInfo& info = checkpoint.info(module + part);
      sizes.bytes += info.bytes();
      widened += info.bytes() / static_cast<uint64_t>(io::dtype_bytes(info.dtype)) * 4;  // f32 in memory
    }
    sizes.resident[0] += widened;
    sizes.resident[1] += widened;
  }
  return sizes;
}

// Memory to hold the weights and run one token: linear layers, embedding, f32 head, one dequantised layer.
uint64_t run_bytes(const io::Checkpoint& checkpoint, const model::LlamaConfig& config, const LinearSizes& sizes,
                   bool bf16) {
  const uint64_t vocabulary = static_cast<uint64_t>(config.vocab_size) * static_cast<uint64_t>(config.hidden_size);
  const std::string embedding = "model.embed_tokens.weight";
  const bool widened = config.tied_head || model::is_packed(checkpoint, embedding);
  uint64_t bytes = sizes.resident[bf16 ? 1 : 0] + (widened ? 4 * vocabulary : checkpoint.info(embedding).bytes());
  if (!config.tied_head) bytes += 4 * vocabulary;
  return bytes + sizes.largest * (bf16 ? 2 : 4);
}

// What a file of tensors holds.
nlohmann::json tensor_file(const char* kind, const io::TensorSource& file) {
  nlohmann::json tensors = nlohmann::json::array();
  uint64_t bytes = 0;
  int64_t elements = 0;
  for (const auto& [name, info] : file.tensors()) {
    tensors.push_back(tensor_entry(name, info));
    bytes += info.bytes();
    elements += *checked_elements(info.shape);  // checked when the file was opened
  }
  return {{"kind", kind},
          {"path", file.files().at(0).string()},
          {"parameters", elements},
          {"bytes", bytes},
          {"bits_per_weight", elements == 0 ? 0.0 : 8.0 * static_cast<double>(bytes) / static_cast<double>(elements)},
          {"tensors", std::move(tensors)}};
}

}  // namespace

nlohmann::json inspect_checkpoint(const fs::path& folder) {
  const io::Checkpoint checkpoint(folder);
  nlohmann::json json = {
      {"path", folder.string()}, {"bytes", checkpoint.total_bytes()}, {"files", checkpoint.files().size()}};
  nlohmann::json tensors = nlohmann::json::array();
  bool packed = false;
  for (const auto& name : checkpoint.names()) {
    tensors.push_back(tensor_entry(name, checkpoint.info(name)));
    packed = packed || model::is_packed(checkpoint, name);
  }
  json["kind"] = packed ? "quantised checkpoint" : "checkpoint";
  json["tensors"] = std::move(tensors);
  const model::LlamaConfig config = model::read_config(folder);
  model::check_tensors(checkpoint, config);
  const LinearSizes sizes = linear_sizes(checkpoint, config);
  json["architecture"] = config.model_type;
  json["parameters"] = config.parameters();
  json["bits_per_weight"] = 8.0 * static_cast<double>(sizes.bytes) / static_cast<double>(sizes.weights);
  json["layers"] = config.layers;
  json["hidden_size"] = config.hidden_size;
  json["heads"] = config.heads;
  json["kv_heads"] = config.kv_heads;
  json["vocab_size"] = config.vocab_size;
  json["context_length"] = config.context_length;
  if (config.quantization) {
    json["bits"] = config.quantization->bits;
    json["group_size"] = config.quantization->group_size;
    for (const auto& [module, own] : config.quantization->modules) {
      json["quantization_of_modules"][module] = {{"bits", own.bits}, {"group_size", own.group_size}};
    }
    json["base_fingerprint"] = io::base_fingerprint(checkpoint);
  }
  json["memory_bytes"] = {{"float32", run_bytes(checkpoint, config, sizes, false)},
                          {"bfloat16", run_bytes(checkpoint, config, sizes, true)}};
  json["kv_cache_bytes_per_token"] = {{"float32", 8 * config.layers * config.kv_heads * config.head_dim},
                                      {"bfloat16", 4 * config.layers * config.kv_heads * config.head_dim}};
  return json;
}

nlohmann::json inspect_adapter(const fs::path& folder) {
  const io::AdapterFile adapter = io::read_adapter(folder);
  const std::unique_ptr<io::TensorSource> file = io::open_adapter_tensors(folder);
  nlohmann::json tensors = nlohmann::json::array();
  uint64_t bytes = 0;
  int64_t parameters = 0;
  for (const auto& [name, info] : file->tensors()) {
    tensors.push_back(tensor_entry(name, info));
    bytes += info.bytes();
    parameters += *checked_elements(info.shape);  // checked when the file was opened
  }
  const io::AdapterConfig& config = adapter.config;
  return {{"kind", "adapter"},
          {"path", folder.string()},
          {"architecture", config.pooling == io::Pooling::kNone ? "LoRA" : "QA-LoRA"},
          {"parameters", parameters},
          {"bytes", bytes},
          {"bits_per_weight", 8.0 * static_cast<double>(bytes) / static_cast<double>(parameters)},
          {"rank", config.rank},
          {"alpha", config.alpha},
          {"scaling", config.scaling},
          {"pooling", io::pooling_name(config.pooling)},
          {"made_by", io::origin_name(config.origin)},
          {"group_size", config.group_size},
          {"modules", adapter.modules.size()},
          {"targets", config.targets},
          {"base_fingerprint", config.base_fingerprint},
          {"base_model", config.base_model},
          {"training_data", config.training_data},
          {"memory_bytes", {{"float32", 4 * parameters}, {"bfloat16", 4 * parameters}}},
          {"tensors", std::move(tensors)}};
}

nlohmann::json inspect_safetensors(const fs::path& path) {
  const io::SafetensorsFile file(path);
  nlohmann::json result = tensor_file("safetensors", file);
  result["file_bytes"] = file.file_bytes();
  result["metadata"] = file.metadata();
  return result;
}

nlohmann::json inspect_torch(const fs::path& path) {
  const io::TorchFile file(path);
  nlohmann::json result = tensor_file("pytorch", file);
  result["file_bytes"] = file.file_bytes();
  result["form"] = file.legacy() ? "pickles, as before PyTorch 1.6" : "zip";
  return result;
}

}  // namespace qalora::cli
