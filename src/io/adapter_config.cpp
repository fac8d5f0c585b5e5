#include "adapter_config.h"

#include <ATen/ATen.h>

#include <cmath>

#include "module_pattern.h"
#include "qalora/core/error.h"
#include "qalora/core/format.h"
#include "qalora/io/json_file.h"

namespace qalora::io {
namespace {

// One part in 10^12: the two are the same number written twice.
bool same_number(double a, double b) { return std::abs(a - b) <= 1e-12 * std::max(std::abs(a), std::abs(b)); }

// A field of the configuration by its type; DataError names the file and the field.
template <typename T>
T field(const nlohmann::json& json, const std::string& where, const char* key,
        std::optional<T> fallback = std::nullopt) {
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
    fits = value.is_number_integer() && (!value.is_number_unsigned() || value.get<uint64_t>() <= INT64_MAX),
    expected = "a whole number";
  }
  QALORA_REQUIRE(fits, DataError, where, ": '", key, "' must be ", expected, ", got ", value.dump());
  return value.get<T>();
}

// Fields of PEFT's that change what the adapter computes, with the reason why that is not read; the others are refused
// without one.
struct Unsupported {
  const char* key;
  const char* reason;
};
constexpr Unsupported kUnsupported[] = {
    {"use_dora", "DoRA gives every row of the weight a new length, which is neither a low-rank product nor an offset"},
    {"lora_bias", "it gives B a bias that no tensor here has a place for"},
    {"layer_replication", "it runs layers more than once, which makes another model of the base"},
    {"modules_to_save", "it replaces whole modules of the base by trained ones"},
    {"trainable_token_indices", "it replaces rows of the base's embedding"},
    {"target_parameters", "it adapts parameters that are not a linear layer's weight"},
    {"fan_in_fan_out", "its weights are stored the other way round"},
    {"alora_invocation_tokens", "it is active from a token on only"},
    {"use_bdlora", "its matrices are block-diagonal"},
    {"arrow_config", "it mixes several adapters"},
    {"kasa_config", "its matrices have singular values of their own"},
    {"velora_config", "it changes how the adapter is applied"},
    {"monteclora_config", "its weights are drawn at random"},
};

void refuse_unsupported(const nlohmann::json& json, const std::string& where) {
  for (const auto& [key, reason] : kUnsupported) {
    if (!json.contains(key)) continue;
    const nlohmann::json& value = json[key];
    const bool says_nothing =
        value.is_null() || value == false || ((value.is_array() || value.is_object()) && value.empty());
    QALORA_REQUIRE(says_nothing, DataError, where, ": '", key, "' is ", value.dump(),
                   ", which is not supported: ", reason,
                   "; train without it, or let PEFT merge the adapter into the dense model and give that with --model");
  }
  const std::string bias = field<std::string>(json, where, "bias", "none");
  QALORA_REQUIRE(bias == "none", DataError, where, ": 'bias' is \"", bias,
                 "\", only \"none\" is supported: the base's biases were trained too");
  // PiSSA, OLoRA, CorDA and LoftQ change the base's weights too, so such an adapter does not fit the base as it is
  // stored.
  if (json.contains("init_lora_weights") && json["init_lora_weights"].is_string()) {
    const auto init = json["init_lora_weights"].get<std::string>();
    const bool keeps_base = init == "gaussian" || init == "orthogonal" || init == "eva";
    QALORA_REQUIRE(keeps_base, DataError, where, ": 'init_lora_weights' is \"", init,
                   "\", which also changes the base's weights; convert it to an ordinary LoRA with PEFT first");
  }
}

// A pattern's or a module's number by its key.
template <typename T>
std::map<std::string, T> numbers_by_name(const nlohmann::json& json, const std::string& where, const char* key) {
  std::map<std::string, T> result;
  if (!json.contains(key) || json[key].is_null()) return result;
  QALORA_REQUIRE(json[key].is_object(), DataError, where, ": '", key, "' must be an object, got ", json[key].dump());
  const std::string inside = message(where, ": ", key);
  for (const auto& [name, value] : json[key].items()) result[name] = field<T>(json[key], inside, name.c_str());
  return result;
}

// The one number that the patterns give to this module. PEFT takes the first pattern that matches, an order that JSON
// objects do not have.
template <typename T>
std::optional<T> matching(const std::map<std::string, T>& patterns, const std::string& where,
                          const std::string& module) {
  std::optional<T> found;
  for (const auto& [pattern, value] : patterns) {
    if (!matches_module(where, pattern, module)) continue;
    QALORA_REQUIRE(
        !found || *found == value, DataError, where, ": several patterns give module '", module,
        "' different numbers, and which one counts depends on their order; write them so that only one matches");
    found = value;
  }
  return found;
}

void read_own_block(const nlohmann::json& json, const std::string& where, AdapterSettings& settings) {
  AdapterConfig& config = settings.config;
  QALORA_REQUIRE(json.is_object(), DataError, where, ": 'qalora' must be an object");
  const std::string block = where + ": qalora";
  const std::string pooling = field<std::string>(json, block, "pooling");
  QALORA_REQUIRE(pooling == "sum" || pooling == "mean" || pooling == "none", DataError, block, ": 'pooling' is \"",
                 pooling, "\", expected sum, mean or none");
  config.pooling = parse_pooling(pooling);
  config.group_size = field<int64_t>(json, block, "group_size");
  const bool fits =
      config.pooling == Pooling::kNone ? config.group_size == 0 : config.group_size > 0 || config.group_size == -1;
  QALORA_REQUIRE(fits, DataError, block, ": 'group_size' is ", config.group_size, " with pooling ", pooling,
                 "; expected a positive number or -1 (whole rows), 0 without pooling");
  const double scaling = field<double>(json, block, "scaling");
  QALORA_REQUIRE(same_number(scaling, config.scaling), DataError, block, ": 'scaling' is ", format_number(scaling),
                 ", but lora_alpha and r give ", format_number(config.scaling));
  config.scaling = scaling;
  settings.scalings = numbers_by_name<double>(json, block, "scalings");
  config.base_fingerprint = field<std::string>(json, block, "base_fingerprint", "");
  config.base_state_fingerprint = field<std::string>(json, block, "base_state_fingerprint", "");
  config.training_data = field<std::string>(json, block, "training_data", "");
}

// What the file says of the adapter's kind.
void read_kind(const nlohmann::json& json, AdapterSettings& settings) {
  AdapterConfig& config = settings.config;
  if (json.contains("qalora")) {
    read_own_block(json["qalora"], settings.where, settings);
    return;
  }
  if (!field<bool>(json, settings.where, "use_qalora", false)) {
    config.origin = AdapterOrigin::kLora;
    config.pooling = Pooling::kNone;
    config.group_size = 0;
    return;
  }
  config.origin = AdapterOrigin::kPeft;
  config.pooling = Pooling::kMean;
  config.group_size = field<int64_t>(json, settings.where, "qalora_group_size", 16);  // PEFT's default
  QALORA_REQUIRE(config.group_size > 0, DataError, settings.where, ": 'qalora_group_size' is ", config.group_size,
                 ", expected a positive number");
}

double scaling_of(const AdapterSettings& settings, double alpha, int64_t rank) {
  return alpha / (settings.rank_stabilised ? std::sqrt(static_cast<double>(rank)) : static_cast<double>(rank));
}

// A number that PEFT writes as an integer where it is one.
nlohmann::json plain_number(double value) {
  if (value == std::floor(value) && std::abs(value) < 1e15) return static_cast<int64_t>(value);
  return value;
}

}  // namespace

AdapterSettings read_adapter_settings(const fs::path& path) {
  const nlohmann::json json = read_json_file(path);
  AdapterSettings settings;
  const std::string where = settings.where = path.string();
  QALORA_REQUIRE(json.is_object(), DataError, where, ": expected an object");
  const std::string type = field<std::string>(json, where, "peft_type");
  QALORA_REQUIRE(type == "LORA", DataError, where, ": 'peft_type' is \"", type, "\", only \"LORA\" is supported");
  refuse_unsupported(json, where);

  AdapterConfig& config = settings.config;
  config.rank = field<int64_t>(json, where, "r", 8);  // PEFT's defaults
  settings.alpha = field<double>(json, where, "lora_alpha", 8);
  config.dropout = field<double>(json, where, "lora_dropout", 0);
  QALORA_REQUIRE(config.rank > 0, DataError, where, ": 'r' is ", config.rank, ", expected a positive number");
  QALORA_REQUIRE(std::isfinite(settings.alpha), DataError, where, ": 'lora_alpha' is not finite");
  QALORA_REQUIRE(config.dropout >= 0 && config.dropout < 1, DataError, where, ": 'lora_dropout' is ", config.dropout,
                 ", expected 0 or more and less than 1");
  settings.rank_stabilised = field<bool>(json, where, "use_rslora", false);
  settings.ranks = numbers_by_name<int64_t>(json, where, "rank_pattern");
  settings.alphas = numbers_by_name<double>(json, where, "alpha_pattern");
  for (const auto& [pattern, rank] : settings.ranks) {
    QALORA_REQUIRE(rank > 0, DataError, where, ": rank_pattern: '", pattern, "' is ", rank,
                   ", expected a positive number");
  }
  for (const auto& [pattern, alpha] : settings.alphas) {
    QALORA_REQUIRE(std::isfinite(alpha), DataError, where, ": alpha_pattern: '", pattern, "' is not finite");
  }
  config.scaling = scaling_of(settings, settings.alpha, config.rank);
  // What would give this scaling when divided by the rank: an adapter is written without rank stabilisation.
  config.alpha = settings.rank_stabilised ? config.scaling * static_cast<double>(config.rank) : settings.alpha;
  config.base_model = field<std::string>(json, where, "base_model_name_or_path", "");
  if (json.contains("target_modules") && json["target_modules"].is_array()) {
    for (const auto& target : json["target_modules"]) {
      QALORA_REQUIRE(target.is_string(), DataError, where, ": 'target_modules' must hold names, got ", target.dump());
      config.targets.push_back(target.get<std::string>());
    }
  }
  read_kind(json, settings);
  return settings;
}

int64_t rank_of(const AdapterSettings& settings, const std::string& module) {
  return matching(settings.ranks, settings.where + ": rank_pattern", module).value_or(settings.config.rank);
}

std::optional<double> own_scaling(const AdapterSettings& settings, const std::string& module, int64_t a_columns) {
  const double alpha = matching(settings.alphas, settings.where + ": alpha_pattern", module).value_or(settings.alpha);
  double scaling = scaling_of(settings, alpha, rank_of(settings, module));
  if (const auto own = settings.scalings.find(module); own != settings.scalings.end()) {
    QALORA_REQUIRE(same_number(own->second, scaling), DataError, settings.where, ": qalora: 'scalings' gives module '",
                   module, "' ", format_number(own->second), ", but alpha_pattern and rank_pattern give ",
                   format_number(scaling));
    return own->second;
  }
  // PEFT's factor is the number of groups, in_features / qalora_group_size: the width of A.
  if (settings.config.origin == AdapterOrigin::kPeft) return scaling * static_cast<double>(a_columns);
  if (same_number(scaling, settings.config.scaling)) return std::nullopt;
  return scaling;
}

nlohmann::json adapter_config_json(const AdapterFile& adapter) {
  const AdapterConfig& config = adapter.config;
  nlohmann::json ranks = nlohmann::json::object(), alphas = nlohmann::json::object(),
                 scalings = nlohmann::json::object();
  for (const auto& [module, weights] : adapter.modules) {
    const int64_t rank = weights.a.size(0);
    const double scaling = weights.scaling(config);
    if (rank != config.rank) ranks[module] = rank;
    if (rank == config.rank && !weights.own_scaling) continue;
    alphas[module] = plain_number(scaling * static_cast<double>(rank));
    scalings[module] = scaling;
  }
  nlohmann::json json = {
      {"alpha_pattern", alphas},
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
      {"rank_pattern", ranks},
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
  if (!scalings.empty()) json["qalora"]["scalings"] = scalings;
  return json;
}

}  // namespace qalora::io
