#include "folder.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "qalora/core/error.h"
#include "qalora/core/format.h"
#include "qalora/model/adapter_base.h"
#include "qalora/tensor/device.h"
#include "qalora/text/gguf_vocabulary.h"

namespace qalora::exporting {

Source::Source(const fs::path& model, const fs::path& adapter_path)
    : checkpoint(model),
      config(model::read_config(checkpoint)) {
  model::check_tensors(checkpoint, config);
  if (adapter_path.empty()) return;
  adapter_folder = io::find_adapter(adapter_path);
  adapter = model::read_adapter_for(adapter_folder, config);
}

std::vector<Matrix> packed_matrices(const Source& source) {
  std::vector<Matrix> result;
  for (const auto& tensor : model::expected_tensors(source.config)) {
    if (model::is_packed(source.checkpoint, tensor.name))
      result.push_back({io::module_of(tensor.name), tensor.shape[0], tensor.shape[1]});
  }
  return result;
}

quant::PackedWeight read_packed(const Source& source, const Matrix& matrix) {
  return model::read_packed(source.checkpoint, matrix.module, matrix.out_features, matrix.in_features,
                            *source.config.quantization);
}

std::vector<std::string> tensor_names(const Source& source) {
  std::vector<std::string> names;
  for (const auto& tensor : model::expected_tensors(source.config)) {
    names.push_back(tensor.name);
    if (!model::is_packed(source.checkpoint, tensor.name)) continue;
    const std::string module = io::module_of(tensor.name);
    names.insert(names.end(), {module + ".scales", module + ".biases"});
  }
  return names;
}

void refuse_permuted(const Source& source, const char* format) {
  for (const std::string& name : source.checkpoint.names()) {
    QALORA_REQUIRE(!name.ends_with(".g_idx"), UserError, source.checkpoint.folder().string(), ": tensor '", name,
                   "': the inputs of this GPTQ "
                   "model were sorted before they were grouped (act-order), and ",
                   format,
                   " has no place for their order; export it with "
                   "--to safetensors, or quantise the dense model without act-order");
  }
}

void refuse_adapter(const Source& source, const char* format, const char* way) {
  QALORA_REQUIRE(!source.adapter, UserError, "--adapter: ", format, " holds a model and no adapter beside it; ", way);
}

void refuse_option(const std::string& value, const char* flag, const char* format) {
  QALORA_REQUIRE(value.empty(), UserError, flag, " has no meaning for --to ", format);
}

io::Dtype choose_dtype(const std::string& value, const char* flag, io::Dtype fallback,
                       const std::set<std::string>& known) {
  if (value.empty()) return fallback;
  QALORA_REQUIRE(known.contains(value), UserError, flag, ": expected ", join({known.begin(), known.end()}, ", "),
                 ", got '", value, "'", did_you_mean(value, {known.begin(), known.end()}));
  return value == "float16" ? io::Dtype::kF16 : value == "bfloat16" ? io::Dtype::kBF16 : io::Dtype::kF32;
}

at::ScalarType scalar_of(io::Dtype dtype) { return io::scalar_type(dtype); }

uint64_t folder_bytes(const Source& source, const std::vector<io::PlannedTensor>& plan) {
  uint64_t total = io::sidecar_bytes(source.checkpoint.folder());
  for (const auto& tensor : plan) total += tensor.bytes();
  return total;
}

uint64_t peak_bytes(const std::vector<io::PlannedTensor>& plan, double copies) {
  uint64_t largest = 0;
  for (const auto& tensor : plan) largest = std::max(largest, tensor.bytes());
  return tensor::peak_memory_bytes() + static_cast<uint64_t>(copies * static_cast<double>(largest)) + 100'000'000;
}

void write_beside_weights(const Source& source, const nlohmann::json& config, const fs::path& folder) {
  io::write_json_file(folder / "config.json", config);
  io::copy_sidecars(source.checkpoint.folder(), folder);
  text::save_gguf_tokenizer(source.checkpoint.folder(), folder);
}

}  // namespace qalora::exporting
