#include "qalora/io/adapter_file.h"

#include <ATen/ATen.h>

#include <charconv>
#include <nlohmann/json.hpp>
#include <set>

#include "adapter_config.h"
#include "qalora/core/error.h"
#include "qalora/core/format.h"
#include "qalora/io/checkpoint.h"
#include "qalora/io/torch_file.h"

namespace qalora::io {
namespace {

constexpr const char* kConfigFile = "adapter_config.json";
constexpr const char* kTensorFile = "adapter_model.safetensors";
constexpr const char* kTorchFile = "adapter_model.bin";
const std::string kPrefix = "base_model.model.";
const std::string kSuffixA = ".lora_A.weight", kSuffixB = ".lora_B.weight";

// [.., ..] in f32, checked. DataError names file and tensor.
at::Tensor read_matrix(const TensorSource& file, const std::string& name) {
  const TensorInfo& info = file.info(name);
  const std::string where = message(file.file_of(name).string(), ": tensor '", name, "': ");
  QALORA_REQUIRE(info.dtype == Dtype::kF32 || info.dtype == Dtype::kF16 || info.dtype == Dtype::kBF16, DataError, where,
                 "is ", dtype_name(info.dtype), ", expected F32, F16 or BF16");
  QALORA_REQUIRE(info.shape.size() == 2 && info.shape[0] > 0 && info.shape[1] > 0, DataError, where, "has shape ",
                 at::IntArrayRef(info.shape), ", expected a matrix");
  at::Tensor matrix = file.read(name).to(at::kFloat);
  QALORA_REQUIRE(at::isfinite(matrix).all().item<bool>(), DataError, where, "holds values that are not finite");
  return matrix;
}

// "lora_A.weight" as PEFT saves it, or with the adapter's name in between as it stands in a state dict.
bool names_part(const std::string& name, const std::string& part, std::string& module) {
  for (const char* middle : {"", ".default"}) {
    const std::string suffix = message(".", part, middle, ".weight");
    if (!name.starts_with(kPrefix) || !name.ends_with(suffix) || name.size() <= kPrefix.size() + suffix.size())
      continue;
    module = name.substr(kPrefix.size(), name.size() - kPrefix.size() - suffix.size());
    return true;
  }
  return false;
}

void check_module(const AdapterSettings& settings, const std::string& where, const std::string& module,
                  AdapterWeights& weights) {
  QALORA_REQUIRE(weights.a.defined(), DataError, where, "has lora_B but no lora_A");
  QALORA_REQUIRE(weights.b.defined(), DataError, where, "has lora_A but no lora_B");
  const int64_t rank = rank_of(settings, module);
  QALORA_REQUIRE(weights.a.size(0) == rank, DataError, where, "lora_A has shape ", weights.a.sizes(),
                 ", but the rank is ", rank);
  QALORA_REQUIRE(weights.b.size(1) == rank, DataError, where, "lora_B has shape ", weights.b.sizes(),
                 ", but the rank is ", rank);
  weights.own_scaling = own_scaling(settings, module, weights.a.size(1));
}

std::map<std::string, AdapterWeights> read_modules(const TensorSource& file, const std::string& path,
                                                   const AdapterSettings& settings) {
  std::map<std::string, AdapterWeights> modules;
  for (const auto& [name, info] : file.tensors()) {
    std::string module;
    const bool is_a = names_part(name, "lora_A", module), is_b = !is_a && names_part(name, "lora_B", module);
    QALORA_REQUIRE(is_a || is_b, DataError, path, ": tensor '", name, "' is not known; expected names such as '",
                   kPrefix, "model.layers.0.self_attn.q_proj", kSuffixA, "'");
    at::Tensor& part = is_a ? modules[module].a : modules[module].b;
    QALORA_REQUIRE(!part.defined(), DataError, path, ": tensor '", name, "': module '", module,
                   "' has this matrix under another name too");
    part = read_matrix(file, name);
  }
  QALORA_REQUIRE(!modules.empty(), DataError, path, ": there is no tensor in it");
  for (auto& [module, weights] : modules)
    check_module(settings, message(path, ": module '", module, "': "), module, weights);
  return modules;
}

bool is_adapter(const fs::path& folder) { return kind_of(folder / kConfigFile) == fs::file_type::regular; }

// The checkpoint of a run with the highest step; empty where there is none.
fs::path newest_checkpoint(const fs::path& checkpoints) {
  fs::path newest;
  int64_t newest_step = -1;
  if (kind_of(checkpoints) != fs::file_type::directory) return newest;
  for (const std::string& name : list_folder(checkpoints)) {
    int64_t step = 0;
    if (!name.starts_with("step-") || !is_adapter(checkpoints / name)) continue;
    const char* end = name.data() + name.size();
    const auto parsed = std::from_chars(name.data() + 5, end, step);
    if (parsed.ec != std::errc() || parsed.ptr != end || step <= newest_step) continue;
    newest_step = step;
    newest = checkpoints / name;
  }
  return newest;
}

}  // namespace

std::string pooling_name(Pooling pooling) {
  switch (pooling) {
    case Pooling::kNone: return "none";
    case Pooling::kSum: return "sum";
    case Pooling::kMean: return "mean";
  }
  throw InternalError("internal error: a pooling without a name");
}

Pooling parse_pooling(std::string_view name) {
  for (Pooling pooling : {Pooling::kNone, Pooling::kSum, Pooling::kMean}) {
    if (name == pooling_name(pooling)) return pooling;
  }
  throw UserError(message("pooling '", name, "' is not known", did_you_mean(name, {"none", "sum", "mean"}),
                          "; expected sum or mean"));
}

fs::path find_adapter(const fs::path& folder) {
  const fs::file_type kind = kind_of(folder);
  QALORA_REQUIRE(kind != fs::file_type::not_found, UserError, folder.string(), ": there is no such adapter folder");
  QALORA_REQUIRE(kind == fs::file_type::directory, UserError, folder.string(),
                 ": is a file; expected the folder of an adapter");
  if (is_adapter(folder)) return folder;
  if (is_adapter(folder / "adapter")) return folder / "adapter";
  const fs::path newest = newest_checkpoint(folder / "checkpoints");
  const bool is_model = kind_of(folder / "config.json") == fs::file_type::regular;
  QALORA_REQUIRE(!newest.empty(), UserError, folder.string(), ": no adapter here; looked for ", kConfigFile,
                 ", adapter/", kConfigFile, " and checkpoints/step-N/", kConfigFile,
                 is_model ? "; this looks like a model's folder, which goes to --model" : "");
  return newest;
}

std::string origin_name(AdapterOrigin origin) {
  switch (origin) {
    case AdapterOrigin::kOwn: return "qalora";
    case AdapterOrigin::kLora: return "LoRA";
    case AdapterOrigin::kPeft: return "PEFT use_qalora";
    case AdapterOrigin::kOfficial: return "official QA-LoRA code";
  }
  throw InternalError("internal error: an adapter's origin without a name");
}

fs::path adapter_tensor_file(const fs::path& folder) {
  for (const char* name : {kTensorFile, kTorchFile}) {
    if (kind_of(folder / name) != fs::file_type::not_found) return folder / name;
  }
  throw DataError(
      message(folder.string(), ": there is no ", kTensorFile, " beside ", kConfigFile, ", and no ", kTorchFile));
}

std::unique_ptr<TensorSource> open_adapter_tensors(const fs::path& folder) {
  const fs::path path = adapter_tensor_file(folder);
  if (path.filename() == kTorchFile) return std::make_unique<TorchFile>(path);
  return std::make_unique<SafetensorsFile>(path);
}

AdapterFile read_adapter(const fs::path& folder) {
  const fs::path found = find_adapter(folder);
  const AdapterSettings settings = read_adapter_settings(found / kConfigFile);
  const std::unique_ptr<TensorSource> tensors = open_adapter_tensors(found);
  AdapterFile adapter;
  adapter.config = settings.config;
  adapter.modules = read_modules(*tensors, adapter_tensor_file(found).string(), settings);
  if (adapter.config.targets.empty()) {
    std::set<std::string> targets;
    for (const auto& [module, weights] : adapter.modules) targets.insert(module.substr(module.rfind('.') + 1));
    adapter.config.targets.assign(targets.begin(), targets.end());
  }
  return adapter;
}

namespace {

void write_tensors(const fs::path& folder, const AdapterFile& adapter,
                   const std::map<std::string, std::string>& metadata) {
  std::map<std::string, at::Tensor> tensors;
  for (const auto& [module, weights] : adapter.modules) {
    tensors[kPrefix + module + kSuffixA] = weights.a.detach().cpu();
    tensors[kPrefix + module + kSuffixB] = weights.b.detach().cpu();
  }
  write_safetensors(folder / kTensorFile, tensors, metadata);
}

}  // namespace

void write_adapter(const fs::path& folder, const AdapterFile& adapter) {
  write_tensors(folder, adapter, {});
  write_json_file(folder / kConfigFile, adapter_config_json(adapter));
}

void write_peft_lora(const fs::path& folder, const AdapterFile& adapter) {
  QALORA_CHECK(adapter.config.pooling == Pooling::kNone, "PEFT has no adapter that pools by ",
               pooling_name(adapter.config.pooling));
  write_tensors(folder, adapter, {{"format", "pt"}});
  nlohmann::json json = adapter_config_json(adapter);
  json.erase("qalora");
  write_json_file(folder / kConfigFile, json);
}

}  // namespace qalora::io
