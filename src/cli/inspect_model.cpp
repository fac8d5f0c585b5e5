#include "inspect_model.h"

#include <algorithm>
#include <map>

#include "qalora/core/checked.h"
#include "qalora/core/error.h"
#include "qalora/core/format.h"
#include "qalora/io/adapter_file.h"
#include "qalora/io/checkpoint.h"
#include "qalora/io/gguf_checkpoint.h"
#include "qalora/io/gptq_view.h"
#include "qalora/io/torch_file.h"
#include "qalora/model/load.h"

namespace qalora::cli {
namespace {

nlohmann::json tensor_entry(const std::string& name, const io::TensorInfo& info) {
  return {{"name", name}, {"dtype", io::dtype_name(info.dtype)}, {"shape", info.shape}};
}

// In the files. Several tensors may be made from the same bytes: codes, scales and offsets of GGUF's blocks.
uint64_t stored_bytes(const io::Checkpoint& checkpoint, const std::vector<std::string>& names) {
  std::map<const std::byte*, uint64_t> pieces;
  for (const std::string& name : names) {
    for (const io::TensorBytes& piece : checkpoint.stored(name)) pieces[piece.span.data()] = piece.span.size();
  }
  uint64_t bytes = 0;
  for (const auto& [place, size] : pieces) bytes += size;
  return bytes;
}

struct LinearSizes {
  uint64_t bytes = 0, weights = 0;  // as they lie in the file, scales and offsets included
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
    if (!model::is_packed(checkpoint, tensor.name)) {
      sizes.bytes += checkpoint.info(tensor.name).bytes();
      sizes.resident[0] += 4 * weights;
      sizes.resident[1] += 2 * weights;
      continue;
    }
    const std::string module = io::module_of(tensor.name);
    sizes.bytes += stored_bytes(checkpoint, {tensor.name, module + ".scales", module + ".biases"});
    uint64_t widened = checkpoint.info(tensor.name).bytes();
    for (const char* part : {".scales", ".biases"}) {
      const io::TensorInfo& info = checkpoint.info(module + part);
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

uint64_t file_bytes(const io::Checkpoint& checkpoint) {
  uint64_t bytes = 0;
  for (const fs::path& file : checkpoint.files()) bytes += fs::file_size(file);
  return bytes;
}

std::string layout_name(const io::ForeignQuantization& quantization) {
  if (quantization.layout == io::ForeignLayout::kAwq) return "AWQ (GEMM order)";
  if (quantization.layout == io::ForeignLayout::kPlanar) return "GPTQ, planar";
  return quantization.zeros == io::ZeroRule::kStored ? "GPTQ v2" : "GPTQ v1";
}

// How a quantised model is stored, and what becomes of it here.
void describe_format(nlohmann::json& json, const io::Checkpoint& checkpoint) {
  if (const auto* view = dynamic_cast<const io::GptqView*>(&checkpoint.source())) {
    const io::ForeignQuantization& quantization = view->stored_as();
    const std::string groups =
        quantization.group_size == -1 ? "whole rows" : message("groups of ", quantization.group_size);
    json["format"] = message(layout_name(quantization), ", ", quantization.bits, " bits, ", groups,
                             quantization.act_order ? ", act-order" : "");
    json["read_as"] = "the same codes and scales, zero points as fp32 offsets; nothing is rounded";
    json["bytes"] = stored_bytes(checkpoint, checkpoint.names());
  } else if (dynamic_cast<const io::GgufCheckpoint*>(&checkpoint.source()) != nullptr) {
    json["format"] = "GGUF";
    json["read_as"] = "linear layers: the same codes, fp32 scales and offsets; nothing is rounded";
  } else {
    json["format"] = "MLX affine";
  }
}

void describe_tokenizer(nlohmann::json& json, const fs::path& model) {
  try {
    if (text::Tokenizer::exists(model)) {
      const text::Tokenizer tokenizer(model);
      json["tokenizer"] = message(tokenizer_kind(tokenizer), ", ", format_count(tokenizer.vocab_size()), " tokens");
      return;
    }
    json["tokenizer"] = "none";
    json["tokenizer_problem"] = model.string() +
                                ": no tokenizer (tokenizer.model or tokenizer.json) in it, so it cannot read text; "
                                "copy the one that belongs to the model into the folder";
  } catch (const Error& error) {
    json["tokenizer"] = "cannot be read";
    json["tokenizer_problem"] = message("no tokenizer: ", error.what());
  }
}

}  // namespace

const char* tokenizer_kind(const text::Tokenizer& tokenizer) {
  return tokenizer.kind() == text::TokenizerKind::kSentencePiece ? "SentencePiece" : "byte-level BPE";
}

nlohmann::json inspect_checkpoint(const fs::path& folder) {
  const io::Checkpoint checkpoint(folder);
  nlohmann::json json = {{"path", folder.string()},
                         {"bytes", checkpoint.total_bytes()},
                         {"file_bytes", file_bytes(checkpoint)},
                         {"files", checkpoint.files().size()}};
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
    describe_format(json, checkpoint);
  }
  describe_tokenizer(json, folder);
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
