#include <ATen/ATen.h>

#include "expand.h"
#include "gguf.h"
#include "qalora/core/error.h"
#include "qalora/io/gguf_names.h"
#include "qalora/model/load.h"

namespace qalora::exporting {
namespace {

std::string name_there(const std::string& module) { return *io::name_to_gguf(module + ".weight"); }

// A: [rank, in_features], B: [out_features, rank], both F32: llama.cpp takes them so beside any base.
std::vector<io::GgufPlanned> plan_tensors(const Source& source) {
  std::vector<io::GgufPlanned> plan;
  const int64_t rank = largest_rank(*source.adapter);
  for (const auto& tensor : model::expected_tensors(source.config)) {
    if (!source.adapter->modules.contains(io::module_of(tensor.name)) || !tensor.linear) continue;
    const std::string name = name_there(io::module_of(tensor.name));
    plan.push_back({name + ".lora_a", io::GgufType::kF32, {rank, tensor.shape[1]}});
    plan.push_back({name + ".lora_b", io::GgufType::kF32, {tensor.shape[0], rank}});
  }
  return plan;
}

// The engine multiplies B A by alpha / rank. What the adapter multiplies with is in A already, so that quotient is 1.
io::GgufMetadata adapter_metadata(const Source& source) {
  io::GgufMetadata metadata;
  metadata.text("general.architecture", gguf_architecture(source.config));
  metadata.text("general.type", "adapter");
  metadata.text("general.name", source.adapter_folder.filename().string());
  metadata.text("adapter.type", "lora");
  metadata.f32("adapter.lora.alpha", static_cast<double>(largest_rank(*source.adapter)));
  return metadata;
}

at::Tensor rows_there(const model::LlamaConfig& config, const std::string& name, const at::Tensor& b) {
  if (!is_permuted(config, name)) return b;
  std::vector<int64_t> rows;
  for (int64_t row = 0; row < b.size(0); ++row) rows.push_back(row_from_gguf(row, config.head_dim));
  return b.index_select(0, at::tensor(rows, at::kLong));
}

// Zeros up to the largest rank of any module: the engine takes each module's rank from B, and alpha is one number.
at::Tensor padded(const at::Tensor& matrix, int64_t dimension, int64_t rank) {
  const int64_t missing = rank - matrix.size(dimension);
  return dimension == 0 ? at::constant_pad_nd(matrix, {0, 0, 0, missing}) : at::constant_pad_nd(matrix, {0, missing});
}

}  // namespace

fs::path gguf_adapter_path(const fs::path& out) {
  fs::path path = out;
  if (out.extension() == ".gguf") return path.replace_extension(".lora.gguf");
  return path += ".lora.gguf";  // "llama-v1.1" and "llama-v1.2" are two models
}

uint64_t gguf_adapter_bytes(const Source& source) {
  return io::gguf_file_bytes(adapter_metadata(source), plan_tensors(source));
}

std::unique_ptr<io::GgufWriter> write_gguf_adapter(const Source& source, const fs::path& path) {
  const int64_t rank = largest_rank(*source.adapter);
  auto writer = std::make_unique<io::GgufWriter>(path, adapter_metadata(source), plan_tensors(source));
  for (const auto& tensor : model::expected_tensors(source.config)) {
    const std::string module = io::module_of(tensor.name);
    const auto found = source.adapter->modules.find(module);
    if (!tensor.linear || found == source.adapter->modules.end()) continue;
    const std::string name = name_there(module);
    const at::Tensor a = padded(expanded_a(source, module, tensor.shape[1]), 0, rank).to(at::kFloat).contiguous();
    const at::Tensor b =
        padded(rows_there(source.config, tensor.name, found->second.b.to(at::kFloat)), 1, rank).contiguous();
    QALORA_REQUIRE(at::isfinite(a).all().item<bool>(), DataError, source.adapter_folder.string(), ": module '", module,
                   "': A is not finite when its scaling is in it");
    writer->write(name + ".lora_a", io::tensor_bytes(a));
    writer->write(name + ".lora_b", io::tensor_bytes(b));
  }
  return writer;
}

}  // namespace qalora::exporting
