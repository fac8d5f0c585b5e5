#include "qalora/model/config.h"

#include <nlohmann/json.hpp>

#include <cmath>
#include <limits>
#include <set>

#include "qalora/core/error.h"
#include "qalora/io/checkpoint.h"
#include "qalora/model/config_keys.h"
#include "qalora/quant/packed_weight.h"

namespace qalora::model {

using nlohmann::json;

namespace {

// Far above any model, far below what could overflow a product of three of them.
constexpr int64_t kLargestSize = int64_t{1} << 24;

// Reads one JSON object and remembers its name for messages.
class Reader {
 public:
  Reader(const json& object, std::string name) : object_(object), name_(std::move(name)) {
    QALORA_REQUIRE(object.is_object(), DataError, name_, ": expected a JSON object, got ", object.type_name());
  }

  bool has(const char* key) const { return object_.contains(key) && !object_.at(key).is_null(); }

  int64_t size(const char* key, std::optional<int64_t> fallback = std::nullopt) const {
    if (!has(key)) {
      QALORA_REQUIRE(fallback.has_value(), DataError, name_, ": key '", key, "' is missing");
      return *fallback;
    }
    const json& value = object_.at(key);
    QALORA_REQUIRE(value.is_number_integer(), DataError, name_, ": '", key, "' is ", value.dump(), ", expected an integer");
    const double number = value.get<double>();
    QALORA_REQUIRE(number >= 1 && number <= static_cast<double>(kLargestSize), DataError, name_, ": '", key, "' is ", value.dump(),
                   ", expected 1 to ", kLargestSize);
    return value.get<int64_t>();
  }

  double number(const char* key, double fallback) const {
    if (!has(key)) return fallback;
    const json& value = object_.at(key);
    QALORA_REQUIRE(value.is_number(), DataError, name_, ": '", key, "' is ", value.dump(), ", expected a number");
    return value.get<double>();
  }

  double positive(const char* key, std::optional<double> fallback) const {
    QALORA_REQUIRE(has(key) || fallback.has_value(), DataError, name_, ": key '", key, "' is missing");
    const double value = number(key, fallback.value_or(0));
    QALORA_REQUIRE(std::isfinite(value) && value > 0, DataError, name_, ": '", key, "' is ", value, ", expected a positive number");
    return value;
  }

  std::optional<double> optional_number(const char* key) const {
    return has(key) ? std::optional<double>(number(key, 0)) : std::nullopt;
  }

  bool flag(const char* key, bool fallback) const {
    if (!has(key)) return fallback;
    const json& value = object_.at(key);
    QALORA_REQUIRE(value.is_boolean(), DataError, name_, ": '", key, "' is ", value.dump(), ", expected true or false");
    return value.get<bool>();
  }

  std::string text(const char* key, const std::string& fallback) const {
    if (!has(key)) return fallback;
    const json& value = object_.at(key);
    QALORA_REQUIRE(value.is_string(), DataError, name_, ": '", key, "' is ", value.dump(), ", expected text");
    return value.get<std::string>();
  }

  const json& at(const char* key) const { return object_.at(key); }
  const std::string& name() const { return name_; }

 private:
  const json& object_;
  std::string name_;
};

RopeKind parse_rope_kind(const std::string& kind, const std::string& name) {
  if (kind == "default") return RopeKind::kDefault;
  if (kind == "linear") return RopeKind::kLinear;
  if (kind == "dynamic") return RopeKind::kDynamic;
  if (kind == "llama3") return RopeKind::kLlama3;
  if (kind == "yarn") return RopeKind::kYarn;
  throw DataError(message(name, ": rope type '", kind, "' is not supported (default, linear, dynamic, llama3, yarn are)"));
}

// Old files: top-level rope_theta and rope_scaling {type | rope_type}; files of Transformers 5: rope_parameters.
RopeConfig parse_rope(const Reader& config, int64_t max_positions) {
  RopeConfig rope;
  rope.original_context = max_positions;
  rope.theta = config.positive("rope_theta", 10000.0);
  const char* key = config.has("rope_parameters") ? "rope_parameters" : "rope_scaling";
  if (!config.has(key)) return rope;
  const Reader scaling(config.at(key), message(config.name(), ": ", key));
  for (const auto& [name, value] : config.at(key).items()) {
    QALORA_REQUIRE(rope_keys().contains(name), DataError, scaling.name(), ": key '", name, "' is not supported");
  }
  rope.theta = scaling.positive("rope_theta", rope.theta);
  rope.kind = parse_rope_kind(scaling.text("rope_type", scaling.text("type", "default")), scaling.name());
  if (scaling.has("partial_rotary_factor")) {
    QALORA_REQUIRE(scaling.number("partial_rotary_factor", 1) == 1, DataError, scaling.name(), ": partial_rotary_factor ",
                   scaling.number("partial_rotary_factor", 1), " is not supported, only 1");
  }
  if (rope.kind == RopeKind::kDefault) return rope;
  rope.factor = scaling.positive("factor", std::nullopt);
  QALORA_REQUIRE(rope.factor >= 1, DataError, scaling.name(), ": 'factor' is ", rope.factor, ", expected 1 or more");
  rope.original_context = scaling.size("original_max_position_embeddings", max_positions);
  if (rope.kind == RopeKind::kLlama3) {
    rope.low_freq_factor = scaling.positive("low_freq_factor", std::nullopt);
    rope.high_freq_factor = scaling.positive("high_freq_factor", std::nullopt);
    QALORA_REQUIRE(rope.high_freq_factor > rope.low_freq_factor, DataError, scaling.name(), ": high_freq_factor ", rope.high_freq_factor,
                   " must be above low_freq_factor ", rope.low_freq_factor);
    QALORA_REQUIRE(scaling.has("original_max_position_embeddings"), DataError, scaling.name(),
                   ": key 'original_max_position_embeddings' is missing");
  }
  if (rope.kind == RopeKind::kYarn) {
    rope.beta_fast = scaling.positive("beta_fast", 32.0);
    rope.beta_slow = scaling.positive("beta_slow", 1.0);
    rope.attention_factor = scaling.optional_number("attention_factor");
    rope.mscale = scaling.optional_number("mscale");
    rope.mscale_all_dim = scaling.optional_number("mscale_all_dim");
    rope.truncate = scaling.flag("truncate", true);
  }
  return rope;
}

// What MLX and this program write; any other quantisation method is refused by name.
std::optional<QuantizationConfig> parse_quantization(const Reader& config) {
  const char* key = config.has("quantization") ? "quantization" : "quantization_config";
  if (!config.has(key)) return std::nullopt;
  const Reader quantization(config.at(key), message(config.name(), ": ", key));
  if (quantization.has("quant_method")) {
    const std::string method = quantization.text("quant_method", "");
    throw DataError(message(quantization.name(), ": quant_method '", method,
                            "' is not read by this version; start from the dense checkpoint and run 'qalora quantize'"));
  }
  const std::string mode = quantization.text("mode", "affine");
  QALORA_REQUIRE(mode == "affine", DataError, quantization.name(), ": mode '", mode, "' is not supported, only 'affine'");
  for (const auto& [name, value] : config.at(key).items()) {
    const bool known = name == "bits" || name == "group_size" || name == "mode";
    QALORA_REQUIRE(known, DataError, quantization.name(), ": '", name, "' (a setting of its own for one layer) is not supported");
  }
  QuantizationConfig result;
  result.bits = static_cast<int>(quantization.size("bits"));
  QALORA_REQUIRE(result.bits == 2 || result.bits == 3 || result.bits == 4 || result.bits == 6 || result.bits == 8, DataError,
                 quantization.name(), ": 'bits' is ", result.bits, ", expected 2, 3, 4, 6 or 8");
  const json& group_size = config.at(key).contains("group_size") ? config.at(key).at("group_size") : json();
  if (group_size.is_number_integer() && group_size.get<int64_t>() == quant::kWholeRow) {
    result.group_size = quant::kWholeRow;
  } else {
    result.group_size = quantization.size("group_size");
  }
  return result;
}

// Keys that some relative of LLaMA uses to change the computation. Absent, null or the neutral value is fine.
void refuse_unsupported(const Reader& config, const json& object) {
  for (const auto& [key, neutral] : neutral_values()) {
    if (!object.contains(key) || object.at(key).is_null()) continue;
    QALORA_REQUIRE(object.at(key) == neutral, DataError, config.name(), ": '", key, "' is ", object.at(key).dump(),
                   ", which changes the result and is not supported (only ", neutral.dump(), " is)");
  }
  for (const auto& [key, value] : object.items()) {
    const bool off = value.is_null() || value == false;
    if (off || key.starts_with("_") || handled_keys().contains(key) || harmless_keys().contains(key) || neutral_values().contains(key)) continue;
    throw DataError(message(config.name(), ": key '", key, "' (", value.dump().substr(0, 60),
                            ") is not known, so its effect on the result is not either; remove it if it has none"));
  }
}

// Full attention equals a sliding window while no sequence is longer than the window, so the window bounds the context.
void apply_sliding_window(const Reader& config, const json& object, LlamaConfig& result) {
  if (config.has("layer_types")) {
    QALORA_REQUIRE(object.at("layer_types").is_array(), DataError, config.name(), ": 'layer_types' is not a list");
    for (const json& type : object.at("layer_types")) {
      QALORA_REQUIRE(type == "full_attention" || type == "sliding_attention", DataError, config.name(), ": 'layer_types' names ", type.dump(),
                     ", which is not supported (full_attention and sliding_attention are)");
    }
  }
  const bool off = result.model_type == "qwen2" && !config.flag("use_sliding_window", false);
  if (off || !config.has("sliding_window")) return;
  result.context_length = std::min(result.context_length, config.size("sliding_window"));
}

void check_shape(const LlamaConfig& c, const std::string& name) {
  QALORA_REQUIRE(c.heads % c.kv_heads == 0, DataError, name, ": num_attention_heads ", c.heads, " is not a multiple of num_key_value_heads ", c.kv_heads);
  QALORA_REQUIRE(c.head_dim % 2 == 0, DataError, name, ": head_dim ", c.head_dim, " is odd, rotary embedding needs pairs");
  QALORA_REQUIRE(c.layers <= 10000, DataError, name, ": num_hidden_layers ", c.layers, " is absurd");
  QALORA_REQUIRE(c.heads <= kLargestSize / c.head_dim, DataError, name, ": num_attention_heads ", c.heads, " x head_dim ", c.head_dim, " is absurd");
}

}  // namespace

LlamaConfig parse_config(const json& object, const std::string& name) {
  const Reader config(object, name);
  LlamaConfig result;
  result.model_type = config.text("model_type", "");
  const std::set<std::string> known = {"llama", "mistral", "qwen2"};
  QALORA_REQUIRE(known.contains(result.model_type), DataError, name, ": model_type '", result.model_type,
                 "' is not supported (llama, mistral and qwen2 are)");
  result.vocab_size = config.size("vocab_size");
  result.hidden_size = config.size("hidden_size");
  result.intermediate_size = config.size("intermediate_size");
  result.layers = config.size("num_hidden_layers");
  result.heads = config.size("num_attention_heads");
  const bool mistral = result.model_type == "mistral";
  result.kv_heads = config.size("num_key_value_heads", mistral && !object.contains("num_key_value_heads") ? 8 : result.heads);
  if (!config.has("head_dim")) {
    QALORA_REQUIRE(result.hidden_size % result.heads == 0, DataError, name, ": hidden_size ", result.hidden_size,
                   " is not a multiple of num_attention_heads ", result.heads, " and head_dim is not given");
  }
  result.head_dim = config.size("head_dim", std::max<int64_t>(1, result.hidden_size / result.heads));
  result.context_length = config.size("max_position_embeddings", mistral ? 131072 : 2048);
  result.norm_eps = config.positive("rms_norm_eps", 1e-6);
  result.initializer_range = config.positive("initializer_range", 0.02);
  result.tied_head = config.flag("tie_word_embeddings", false);
  const bool attention_bias = config.flag("attention_bias", false);
  result.qkv_bias = attention_bias || result.model_type == "qwen2";
  result.o_bias = attention_bias && result.model_type != "qwen2";
  result.mlp_bias = config.flag("mlp_bias", false);
  check_shape(result, name);
  result.rope = parse_rope(config, result.context_length);
  // A dynamic rotary embedding is made for sequences up to `factor` times the trained length.
  if (result.rope.kind == RopeKind::kDynamic) {
    result.context_length = static_cast<int64_t>(static_cast<double>(result.rope.original_context) * result.rope.factor);
  }
  apply_sliding_window(config, object, result);
  result.quantization = parse_quantization(config);
  refuse_unsupported(config, object);
  return result;
}

LlamaConfig read_config(const fs::path& folder) {
  const fs::path path = folder / "config.json";
  return parse_config(io::read_json_file(path), path.string());
}

int64_t LlamaConfig::parameters() const {
  const int64_t q = heads * head_dim, kv = kv_heads * head_dim;
  int64_t layer = hidden_size * (2 * q + 2 * kv) + 3 * hidden_size * intermediate_size + 2 * hidden_size;
  if (qkv_bias) layer += q + 2 * kv;
  if (o_bias) layer += hidden_size;
  if (mlp_bias) layer += 2 * intermediate_size + hidden_size;
  return layers * layer + hidden_size + vocab_size * hidden_size * (tied_head ? 1 : 2);
}

json derived_config(const json& source, const LlamaConfig& config, const std::optional<QuantizationConfig>& quantization) {
  json result = source;
  // Engines differ in which spelling they read: mlx-lm takes only the top-level one, Transformers 5 only the new one.
  result["rope_theta"] = config.rope.theta;
  json scaling = json::object();
  for (const char* key : {"rope_scaling", "rope_parameters"}) {
    if (source.contains(key) && source.at(key).is_object()) scaling = source.at(key);
  }
  const bool scaled = config.rope.kind != RopeKind::kDefault;
  if (scaled && scaling.contains("type") && !scaling.contains("rope_type")) scaling["rope_type"] = scaling["type"];
  json parameters = scaling;
  parameters.erase("type");
  parameters["rope_type"] = scaled ? scaling.at("rope_type") : json("default");
  parameters["rope_theta"] = config.rope.theta;
  result["rope_parameters"] = parameters;
  scaling.erase("rope_theta");
  result["rope_scaling"] = scaled ? scaling : json(nullptr);
  result["tie_word_embeddings"] = config.tied_head;
  result.erase("quantization");
  result.erase("quantization_config");
  if (quantization) {
    const json entry = {{"bits", quantization->bits}, {"group_size", quantization->group_size}, {"mode", "affine"}};
    result["quantization"] = entry;
    result["quantization_config"] = entry;
  }
  return result;
}

}  // namespace qalora::model
