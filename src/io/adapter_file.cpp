#include "qalora/io/adapter_file.h"

#include <ATen/ATen.h>

#include <charconv>
#include <cmath>
#include <nlohmann/json.hpp>
#include <set>

#include "qalora/core/error.h"
#include "qalora/core/format.h"
#include "qalora/io/checkpoint.h"

namespace qalora::io {
namespace {

constexpr const char* kConfigFile = "adapter_config.json";
constexpr const char* kTensorFile = "adapter_model.safetensors";
const std::string kPrefix = "base_model.model.";
const std::string kSuffixA = ".lora_A.weight", kSuffixB = ".lora_B.weight";

// A field of the configuration by its type; DataError names the file and the field.
template <typename T>
T field(const nlohmann::json& json, const std::string& where, const char* key, std::optional<T> fallback = std::nullopt) {
  if (!json.contains(key) || json[key].is_null()) {
    QALORA_REQUIRE(fallback.has_value(), DataError, where, ": '", key, "' is missing");
    return *fallback;
  }
  const nlohmann::json& value = json[key];
  bool fits = false;
  const char* expected = "";
  if constexpr (std::is_same_v<T, std::string>) {
    fits = value.is_string(), expected = "text";
  } else if constexpr (std::is_same_v<T, bool>) {
    fits = value.is_boolean(), expected = "true or false";
  } else if constexpr (std::is_same_v<T, double>) {
    fits = value.is_number(), expected = "a number";
  } else {
    // What does not fit into 64 bits with a sign would wrap and come out as another number.
    fits = value.is_number_integer() && (!value.is_number_unsigned() || value.get<uint64_t>() <= INT64_MAX), expected = "a whole number";
  }
  QALORA_REQUIRE(fits, DataError, where, ": '", key, "' must be ", expected, ", got ", value.dump());
  return value.get<T>();
}

// PEFT's fields that change what the adapter computes and that are not supported, when they say anything at all.
void refuse_unsupported(const nlohmann::json& json, const std::string& where) {
  for (const char* key : {"use_dora", "lora_bias", "layer_replication", "modules_to_save", "rank_pattern", "alpha_pattern",
                          "trainable_token_indices", "target_parameters", "fan_in_fan_out", "alora_invocation_tokens", "use_bdlora",
                          "arrow_config", "kasa_config", "velora_config", "monteclora_config"}) {
    if (!json.contains(key)) continue;
    const nlohmann::json& value = json[key];
    const bool says_nothing = value.is_null() || value == false || ((value.is_array() || value.is_object()) && value.empty());
    QALORA_REQUIRE(says_nothing, DataError, where, ": '", key, "' is ", value.dump(), ", which is not supported; train without it");
  }
  const std::string bias = field<std::string>(json, where, "bias", "none");
  QALORA_REQUIRE(bias == "none", DataError, where, ": 'bias' is \"", bias, "\", only \"none\" is supported");
  // PiSSA, OLoRA, CorDA and LoftQ change the base's weights too, so such an adapter does not fit the base as it is stored.
  if (json.contains("init_lora_weights") && json["init_lora_weights"].is_string()) {
    const auto init = json["init_lora_weights"].get<std::string>();
    const bool keeps_base = init == "gaussian" || init == "orthogonal" || init == "eva";
    QALORA_REQUIRE(keeps_base, DataError, where, ": 'init_lora_weights' is \"", init,
                   "\", which also changes the base's weights; convert it to an ordinary LoRA with PEFT first");
  }
}

void read_own_block(const nlohmann::json& json, const std::string& where, AdapterConfig& config) {
  QALORA_REQUIRE(json.is_object(), DataError, where, ": 'qalora' must be an object");
  const std::string block = where + ": qalora";
  const std::string pooling = field<std::string>(json, block, "pooling");
  QALORA_REQUIRE(pooling == "sum" || pooling == "mean" || pooling == "none", DataError, block, ": 'pooling' is \"", pooling,
                 "\", expected sum, mean or none");
  config.pooling = parse_pooling(pooling);
  config.group_size = field<int64_t>(json, block, "group_size");
  const bool fits = config.pooling == Pooling::kNone ? config.group_size == 0 : config.group_size > 0 || config.group_size == -1;
  QALORA_REQUIRE(fits, DataError, block, ": 'group_size' is ", config.group_size, " with pooling ", pooling,
                 "; expected a positive number or -1 (whole rows), 0 without pooling");
  const double scaling = field<double>(json, block, "scaling");
  // One part in 10^12: the two are the same number written twice.
  QALORA_REQUIRE(std::abs(scaling - config.scaling) <= 1e-12 * std::abs(scaling), DataError, block, ": 'scaling' is ",
                 format_number(scaling), ", but lora_alpha and r give ", format_number(config.scaling));
  config.scaling = scaling;
  config.base_fingerprint = field<std::string>(json, block, "base_fingerprint", "");
  config.base_state_fingerprint = field<std::string>(json, block, "base_state_fingerprint", "");
  config.training_data = field<std::string>(json, block, "training_data", "");
}

AdapterConfig read_config(const fs::path& path) {
  const nlohmann::json json = read_json_file(path);
  const std::string where = path.string();
  QALORA_REQUIRE(json.is_object(), DataError, where, ": expected an object");
  const std::string type = field<std::string>(json, where, "peft_type");
  QALORA_REQUIRE(type == "LORA", DataError, where, ": 'peft_type' is \"", type, "\", only \"LORA\" is supported");
  refuse_unsupported(json, where);

  AdapterConfig config;
  config.rank = field<int64_t>(json, where, "r", 8);  // PEFT's defaults
  config.alpha = field<double>(json, where, "lora_alpha", 8);
  config.dropout = field<double>(json, where, "lora_dropout", 0);
  QALORA_REQUIRE(config.rank > 0, DataError, where, ": 'r' is ", config.rank, ", expected a positive number");
  QALORA_REQUIRE(std::isfinite(config.alpha), DataError, where, ": 'lora_alpha' is not finite");
  QALORA_REQUIRE(config.dropout >= 0 && config.dropout < 1, DataError, where, ": 'lora_dropout' is ", config.dropout,
                 ", expected 0 or more and less than 1");
  const bool rank_stabilised = field<bool>(json, where, "use_rslora", false);
  config.scaling = config.alpha / (rank_stabilised ? std::sqrt(static_cast<double>(config.rank)) : static_cast<double>(config.rank));
  config.base_model = field<std::string>(json, where, "base_model_name_or_path", "");
  if (json.contains("target_modules") && json["target_modules"].is_array()) {
    for (const auto& target : json["target_modules"]) {
      QALORA_REQUIRE(target.is_string(), DataError, where, ": 'target_modules' must hold names, got ", target.dump());
      config.targets.push_back(target.get<std::string>());
    }
  }
  if (json.contains("qalora")) {
    read_own_block(json["qalora"], where, config);
    return config;
  }
  QALORA_REQUIRE(!field<bool>(json, where, "use_qalora", false), DataError, where,
                 ": a QA-LoRA adapter written by PEFT ('use_qalora'): its scale differs from layer to layer, and importing it is not "
                 "in this version; train the adapter with qalora finetune");
  config.pooling = Pooling::kNone;
  config.group_size = 0;
  return config;
}

// [.., ..] in f32, checked. DataError names file and tensor.
at::Tensor read_matrix(const SafetensorsFile& file, const std::string& name) {
  const TensorInfo& info = file.info(name);
  const std::string where = message(file.path().string(), ": tensor '", name, "': ");
  QALORA_REQUIRE(info.dtype == Dtype::kF32 || info.dtype == Dtype::kF16 || info.dtype == Dtype::kBF16, DataError, where, "is ",
                 dtype_name(info.dtype), ", expected F32, F16 or BF16");
  QALORA_REQUIRE(info.shape.size() == 2 && info.shape[0] > 0 && info.shape[1] > 0, DataError, where, "has shape ",
                 at::IntArrayRef(info.shape), ", expected a matrix");
  at::Tensor matrix = file.read(name).to(at::kFloat);
  QALORA_REQUIRE(at::isfinite(matrix).all().item<bool>(), DataError, where, "holds values that are not finite");
  return matrix;
}

std::map<std::string, AdapterWeights> read_modules(const SafetensorsFile& file, int64_t rank) {
  const std::string path = file.path().string();
  std::map<std::string, AdapterWeights> modules;
  for (const auto& [name, info] : file.tensors()) {
    const bool is_a = name.ends_with(kSuffixA), is_b = name.ends_with(kSuffixB);
    QALORA_REQUIRE(name.starts_with(kPrefix) && (is_a || is_b), DataError, path, ": tensor '", name, "' is not known; expected names such as '",
                   kPrefix, "model.layers.0.self_attn.q_proj", kSuffixA, "'");
    const std::string module = name.substr(kPrefix.size(), name.size() - kPrefix.size() - kSuffixA.size());
    (is_a ? modules[module].a : modules[module].b) = read_matrix(file, name);
  }
  QALORA_REQUIRE(!modules.empty(), DataError, path, ": there is no tensor in it");
  for (const auto& [module, weights] : modules) {
    const std::string where = message(path, ": module '", module, "': ");
    QALORA_REQUIRE(weights.a.defined(), DataError, where, "has lora_B but no lora_A");
    QALORA_REQUIRE(weights.b.defined(), DataError, where, "has lora_A but no lora_B");
    QALORA_REQUIRE(weights.a.size(0) == rank, DataError, where, "lora_A has shape ", weights.a.sizes(), ", but the rank is ", rank);
    QALORA_REQUIRE(weights.b.size(1) == rank, DataError, where, "lora_B has shape ", weights.b.sizes(), ", but the rank is ", rank);
  }
  return modules;
}

// A number that PEFT writes as an integer where it is one.
nlohmann::json plain_number(double value) {
  if (value == std::floor(value) && std::abs(value) < 1e15) return static_cast<int64_t>(value);
  return value;
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
  throw UserError(message("pooling '", name, "' is not known", did_you_mean(name, {"none", "sum", "mean"}), "; expected sum or mean"));
}

fs::path find_adapter(const fs::path& folder) {
  const fs::file_type kind = kind_of(folder);
  QALORA_REQUIRE(kind != fs::file_type::not_found, UserError, folder.string(), ": there is no such adapter folder");
  QALORA_REQUIRE(kind == fs::file_type::directory, UserError, folder.string(), ": is a file; expected the folder of an adapter");
  if (is_adapter(folder)) return folder;
  if (is_adapter(folder / "adapter")) return folder / "adapter";
  const fs::path newest = newest_checkpoint(folder / "checkpoints");
  const bool is_model = kind_of(folder / "config.json") == fs::file_type::regular;
  QALORA_REQUIRE(!newest.empty(), UserError, folder.string(), ": no adapter here; looked for ", kConfigFile, ", adapter/", kConfigFile,
                 " and checkpoints/step-N/", kConfigFile, is_model ? "; this looks like a model's folder, which goes to --model" : "");
  return newest;
}

AdapterFile read_adapter(const fs::path& folder) {
  const fs::path found = find_adapter(folder);
  AdapterFile adapter;
  adapter.config = read_config(found / kConfigFile);
  const auto there = [&](const char* name) { return kind_of(found / name) != fs::file_type::not_found; };
  const bool torch_only = !there(kTensorFile) && there("adapter_model.bin");
  QALORA_REQUIRE(!torch_only, DataError, found.string(),
                 ": holds adapter_model.bin, a Python pickle, which is never opened; save the adapter as safetensors (PEFT: save_pretrained)");
  QALORA_REQUIRE(there(kTensorFile), DataError, found.string(), ": there is no ", kTensorFile, " beside ", kConfigFile);
  adapter.modules = read_modules(SafetensorsFile(found / kTensorFile), adapter.config.rank);
  if (adapter.config.targets.empty()) {
    std::set<std::string> targets;
    for (const auto& [module, weights] : adapter.modules) targets.insert(module.substr(module.rfind('.') + 1));
    adapter.config.targets.assign(targets.begin(), targets.end());
  }
  return adapter;
}

void write_adapter(const fs::path& folder, const AdapterFile& adapter) {
  const AdapterConfig& config = adapter.config;
  std::map<std::string, at::Tensor> tensors;
  for (const auto& [module, weights] : adapter.modules) {
    tensors[kPrefix + module + kSuffixA] = weights.a.detach().cpu();
    tensors[kPrefix + module + kSuffixB] = weights.b.detach().cpu();
  }
  write_safetensors(folder / kTensorFile, tensors);
  nlohmann::json json = {
      {"alpha_pattern", nlohmann::json::object()},
      {"auto_mapping", nullptr},
      {"base_model_name_or_path", config.base_model},
      {"bias", "none"},
      {"fan_in_fan_out", false},
      {"inference_mode", true},
      {"init_lora_weights", true},
      {"layers_pattern", nullptr},
      {"layers_to_transform", nullptr},
      {"lora_alpha", plain_number(config.alpha)},
      {"lora_dropout", config.dropout},
      {"modules_to_save", nullptr},
      {"peft_type", "LORA"},
      {"r", config.rank},
      {"rank_pattern", nlohmann::json::object()},
      {"revision", nullptr},
      {"target_modules", config.targets},
      {"task_type", "CAUSAL_LM"},
      {"use_dora", false},
      {"use_rslora", false},
  };
  json["qalora"] = {{"pooling", pooling_name(config.pooling)},
                    {"group_size", config.group_size},
                    {"scaling", config.scaling},
                    {"base_fingerprint", config.base_fingerprint},
                    {"base_state_fingerprint", config.base_state_fingerprint},
                    {"training_data", config.training_data}};
  write_json_file(folder / kConfigFile, json);
}

}  // namespace qalora::io
