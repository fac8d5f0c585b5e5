#include "qalora/model/config.h"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>
#include <vector>

#include "qalora/core/error.h"
#include "qalora/io/checkpoint.h"
#include "qalora/io/model_files.h"
#include "qalora/model/config_keys.h"
#include "qalora/quant/packed_weight.h"

namespace qalora::model {

using nlohmann::json;

namespace {

// Far above any model, far below what could overflow a product of three of them.
constexpr int64_t kLargestSize = int64_t{1} << 24;
constexpr double kMostParameters = 1e15;

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
    QALORA_REQUIRE(value.is_number_integer(), DataError, name_, ": '", key, "' is ", value.dump(),
                   ", expected an integer");
    const double number = value.get<double>();
    QALORA_REQUIRE(number >= 1 && number <= static_cast<double>(kLargestSize), DataError, name_, ": '", key, "' is ",
                   value.dump(), ", expected 1 to ", kLargestSize);
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
    QALORA_REQUIRE(std::isfinite(value) && value > 0, DataError, name_, ": '", key, "' is ", value,
                   ", expected a positive number");
    return value;
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
  auto items() const { return object_.items(); }
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
  throw DataError(
      message(name, ": rope type '", kind, "' is not supported (default, linear, dynamic, llama3, yarn are)"));
}

// theta of the first place that states it, else Transformers' default; places that disagree are refused.
double parse_theta(const Reader& config, const std::vector<Reader>& blocks) {
  double theta = 10000;
  std::string stated_by;
  const auto take = [&](const Reader& place) {
    if (!place.has("rope_theta")) return;
    const double value = place.positive("rope_theta", std::nullopt);
    QALORA_REQUIRE(value > 1, DataError, place.name(), ": 'rope_theta' is ", value, ", expected more than 1");
    QALORA_REQUIRE(stated_by.empty() || value == theta, DataError, place.name(), ": 'rope_theta' is ", value, ", but ",
                   theta, " in ", stated_by, "; remove the one that is wrong");
    theta = value;
    stated_by = place.name();
  };
  take(config);
  for (const Reader& block : blocks) take(block);
  return theta;
}

std::string rope_type(const Reader& block) {
  const std::string type = block.text("rope_type", block.text("type", "default"));
  const std::string old_type = block.text("type", type);
  QALORA_REQUIRE(old_type == type, DataError, block.name(), ": 'rope_type' is '", type, "', but 'type' is '", old_type,
                 "'; remove the one that is wrong");
  return type;
}

void parse_yarn(const Reader& block, RopeConfig& rope) {
  rope.beta_fast = block.positive("beta_fast", 32.0);
  rope.beta_slow = block.positive("beta_slow", 1.0);
  QALORA_REQUIRE(rope.beta_fast >= rope.beta_slow, DataError, block.name(), ": beta_fast ", rope.beta_fast,
                 " is below beta_slow ", rope.beta_slow);
  if (block.has("attention_factor")) rope.attention_factor = block.positive("attention_factor", std::nullopt);
  for (const auto& [key, value] : {std::pair{"mscale", &rope.mscale}, {"mscale_all_dim", &rope.mscale_all_dim}}) {
    if (!block.has(key)) continue;
    *value = block.number(key, 0);
    QALORA_REQUIRE(std::isfinite(**value) && **value >= 0, DataError, block.name(), ": '", key, "' is ", **value,
                   ", expected 0 or more");
  }
  rope.truncate = block.flag("truncate", true);
}

// One of the two spellings, rope_scaling or rope_parameters.
RopeConfig parse_rope_block(const Reader& block, double theta, int64_t max_positions) {
  for (const auto& [key, value] : block.items()) {
    QALORA_REQUIRE(rope_keys().contains(key), DataError, block.name(), ": key '", key, "' is not supported");
  }
  RopeConfig rope;
  rope.theta = theta;
  rope.original_context = max_positions;
  rope.kind = parse_rope_kind(rope_type(block), block.name());
  const double rotated = block.number("partial_rotary_factor", 1);
  QALORA_REQUIRE(rotated == 1, DataError, block.name(), ": partial_rotary_factor ", rotated,
                 " is not supported, only 1");
  if (rope.kind == RopeKind::kDefault) {
    QALORA_REQUIRE(
        block.number("factor", 1) == 1, DataError, block.name(), ": 'factor' is ", block.number("factor", 1),
        ", which the rope type 'default' does not use; name the type (linear, dynamic, llama3, yarn) or remove it");
    return rope;
  }
  rope.factor = block.positive("factor", std::nullopt);
  QALORA_REQUIRE(rope.factor >= 1 && rope.factor <= static_cast<double>(kLargestSize), DataError, block.name(),
                 ": 'factor' is ", rope.factor, ", expected 1 to ", kLargestSize);
  rope.original_context = block.size("original_max_position_embeddings", max_positions);
  if (rope.kind == RopeKind::kLlama3) {
    rope.low_freq_factor = block.positive("low_freq_factor", std::nullopt);
    rope.high_freq_factor = block.positive("high_freq_factor", std::nullopt);
    QALORA_REQUIRE(rope.high_freq_factor > rope.low_freq_factor, DataError, block.name(), ": high_freq_factor ",
                   rope.high_freq_factor, " must be above low_freq_factor ", rope.low_freq_factor);
    QALORA_REQUIRE(block.has("original_max_position_embeddings"), DataError, block.name(),
                   ": key 'original_max_position_embeddings' is missing");
  }
  if (rope.kind == RopeKind::kYarn) parse_yarn(block, rope);
  return rope;
}

// Old files: top-level rope_theta and rope_scaling {type | rope_type}; files of Transformers 5: rope_parameters. A file
// may hold both, as ours do, when they say the same: which of them a reader prefers differs, and so would the result.
RopeConfig parse_rope(const Reader& config, int64_t max_positions) {
  std::vector<Reader> blocks;
  for (const char* key : {"rope_scaling", "rope_parameters"}) {
    if (config.has(key)) blocks.emplace_back(config.at(key), message(config.name(), ": ", key));
  }
  RopeConfig rope;
  rope.theta = parse_theta(config, blocks);
  rope.original_context = max_positions;
  if (blocks.empty()) return rope;
  rope = parse_rope_block(blocks[0], rope.theta, max_positions);
  QALORA_REQUIRE(blocks.size() == 1 || parse_rope_block(blocks[1], rope.theta, max_positions) == rope, DataError,
                 config.name(), ": rope_scaling ", config.at("rope_scaling").dump(), " and rope_parameters ",
                 config.at("rope_parameters").dump(), " contradict each other; remove the one that is wrong");
  return rope;
}

// "bits" and "group_size" of an object.
QuantizationConfig parse_bits(const Reader& object) {
  QuantizationConfig result;
  const std::string mode = object.text("mode", "affine");
  QALORA_REQUIRE(mode == "affine", DataError, object.name(), ": mode '", mode, "' is not supported, only 'affine'");
  result.bits = static_cast<int>(object.size("bits"));
  QALORA_REQUIRE(quant::is_bits(result.bits), DataError, object.name(), ": 'bits' is ", result.bits,
                 ", expected 2, 3, 4, 5, 6 or 8");
  const bool whole_row = object.has("group_size") && object.at("group_size").is_number_integer() &&
                         object.at("group_size") == quant::kWholeRow;
  result.group_size = whole_row ? quant::kWholeRow : object.size("group_size");
  return result;
}

// What MLX and this program write; any other quantisation method is refused by name. Beside the two numbers for all,
// MLX has an entry for each module that differs: an object with its own, false where it is dense (its tensors say so
// too), true where it is as all others.
std::optional<QuantizationConfig> parse_quantization(const Reader& config) {
  const char* key = config.has("quantization") ? "quantization" : "quantization_config";
  if (!config.has(key)) return std::nullopt;
  const Reader quantization(config.at(key), message(config.name(), ": ", key));
  if (quantization.has("quant_method")) {
    const std::string method = quantization.text("quant_method", "");
    throw DataError(message(
        quantization.name(), ": quant_method '", method,
        "' is not read in this layout; start from the dense checkpoint and run 'qalora quantize', or from a GPTQ, AWQ or "
        "MLX checkpoint"));
  }
  QuantizationConfig result = parse_bits(quantization);
  for (const auto& [name, value] : config.at(key).items()) {
    if (name == "bits" || name == "group_size" || name == "mode" || value.is_boolean()) continue;
    QALORA_REQUIRE(value.is_object(), DataError, quantization.name(), ": key '", name, "' is not supported");
    const QuantizationConfig own = parse_bits(Reader(value, message(quantization.name(), ": ", name)));
    if (own.bits != result.bits || own.group_size != result.group_size) result.modules[name] = own;
  }
  return result;
}

// A file may say "llama" and describe a relative (a mixture of experts, a classifier): the class it names must be the
// plain one.
void check_architectures(const Reader& config, const std::string& model_type) {
  if (!config.has("architectures")) return;
  const json& names = config.at("architectures");
  QALORA_REQUIRE(names.is_array(), DataError, config.name(), ": 'architectures' is ", names.dump().substr(0, 60),
                 ", expected a list");
  // The first conversions of LLaMA spelt it the second way.
  static const std::map<std::string, std::set<std::string>> expected = {
      {"llama", {"LlamaForCausalLM", "LLaMAForCausalLM"}},
      {"mistral", {"MistralForCausalLM"}},
      {"qwen2", {"Qwen2ForCausalLM"}},
      {"qwen3", {"Qwen3ForCausalLM"}}};
  const std::set<std::string>& allowed = expected.at(model_type);
  for (const json& name : names) {
    QALORA_REQUIRE(name.is_string() && allowed.contains(name.get<std::string>()), DataError, config.name(),
                   ": 'architectures' names ", name.dump().substr(0, 60), ", which is not supported; model_type '",
                   model_type, "' is read as ", *allowed.rbegin());
  }
}

// Keys that some relative of LLaMA uses to change the computation. Absent, null or the neutral value is fine.
void refuse_unsupported(const Reader& config, const json& object) {
  QALORA_REQUIRE(
      !config.has("auto_map") || object.at("auto_map").empty(), DataError, config.name(),
      ": 'auto_map' names Python code "
      "that computes the model, which is not run here; remove it if this is a plain model of its model_type");
  for (const auto& [key, neutral] : neutral_values()) {
    if (!object.contains(key) || object.at(key).is_null()) continue;
    QALORA_REQUIRE(object.at(key) == neutral, DataError, config.name(), ": '", key, "' is ", object.at(key).dump(),
                   ", which changes the result and is not supported (only ", neutral.dump(), " is)");
  }
  for (const auto& [key, value] : object.items()) {
    const bool known = handled_keys().contains(key) || harmless_keys().contains(key) || neutral_values().contains(key);
    if (known || value.is_null() || value == false || key.starts_with("_")) continue;
    throw DataError(message(config.name(), ": key '", key, "' (", value.dump().substr(0, 60),
                            ") is not known, so its effect on the result is not either; remove it if it has none"));
  }
}

// Full attention equals a sliding window while no sequence is longer than the window, so the window bounds the context.
void apply_sliding_window(const Reader& config, const json& object, LlamaConfig& result) {
  if (config.has("layer_types")) {
    QALORA_REQUIRE(object.at("layer_types").is_array(), DataError, config.name(), ": 'layer_types' is not a list");
    for (const json& type : object.at("layer_types")) {
      QALORA_REQUIRE(type == "full_attention" || type == "sliding_attention", DataError, config.name(),
                     ": 'layer_types' names ", type.dump(),
                     ", which is not supported (full_attention and sliding_attention are)");
    }
  }
  const bool qwen = result.model_type == "qwen2" || result.model_type == "qwen3";
  const bool off = qwen && !config.flag("use_sliding_window", false);
  if (off || !config.has("sliding_window")) return;
  result.context_length = std::min(result.context_length, config.size("sliding_window"));
}

template <typename T>
T count_parameters(const LlamaConfig& c) {
  const T hidden = static_cast<T>(c.hidden_size), intermediate = static_cast<T>(c.intermediate_size);
  const T q = static_cast<T>(c.heads * c.head_dim), kv = static_cast<T>(c.kv_heads * c.head_dim);
  T layer = hidden * (2 * q + 2 * kv) + 3 * hidden * intermediate + 2 * hidden;
  if (c.qkv_bias) layer += q + 2 * kv;
  if (c.qk_norm) layer += 2 * static_cast<T>(c.head_dim);
  if (c.o_bias) layer += hidden;
  if (c.mlp_bias) layer += 2 * intermediate + hidden;
  return static_cast<T>(c.layers) * layer + hidden + static_cast<T>(c.vocab_size) * hidden * (c.tied_head ? 1 : 2);
}

void check_shape(const LlamaConfig& c, const std::string& name) {
  QALORA_REQUIRE(c.heads % c.kv_heads == 0, DataError, name, ": num_attention_heads ", c.heads,
                 " is not a multiple of num_key_value_heads ", c.kv_heads);
  QALORA_REQUIRE(c.head_dim % 2 == 0, DataError, name, ": head_dim ", c.head_dim,
                 " is odd, rotary embedding needs pairs");
  QALORA_REQUIRE(c.layers <= 10000, DataError, name, ": num_hidden_layers ", c.layers, " is absurd");
  QALORA_REQUIRE(c.heads <= kLargestSize / c.head_dim, DataError, name, ": num_attention_heads ", c.heads,
                 " x head_dim ", c.head_dim, " is absurd");
  // In double, which cannot overflow: below it, sizes in bytes and operations a token fit 64 bits.
  const double parameters = count_parameters<double>(c);
  QALORA_REQUIRE(parameters <= kMostParameters, DataError, name, ": describes a model of ", parameters,
                 " parameters, which is absurd");
}

}  // namespace

LlamaConfig parse_config(const json& object, const std::string& name) {
  const Reader config(object, name);
  LlamaConfig result;
  result.model_type = config.text("model_type", "");
  const std::set<std::string> known = {"llama", "mistral", "qwen2", "qwen3"};
  QALORA_REQUIRE(known.contains(result.model_type), DataError, name, ": model_type '", result.model_type,
                 "' is not supported (llama, mistral, qwen2 and qwen3 are)");
  result.vocab_size = config.size("vocab_size");
  result.hidden_size = config.size("hidden_size");
  result.intermediate_size = config.size("intermediate_size");
  result.layers = config.size("num_hidden_layers");
  result.heads = config.size("num_attention_heads");
  const bool mistral = result.model_type == "mistral";
  result.kv_heads =
      config.size("num_key_value_heads", mistral && !object.contains("num_key_value_heads") ? 8 : result.heads);
  result.qk_norm = result.model_type == "qwen3";
  if (!config.has("head_dim") && !result.qk_norm) {
    QALORA_REQUIRE(result.hidden_size % result.heads == 0, DataError, name, ": hidden_size ", result.hidden_size,
                   " is not a multiple of num_attention_heads ", result.heads, " and head_dim is not given");
  }
  result.head_dim =
      config.size("head_dim", result.qk_norm ? 128 : std::max<int64_t>(1, result.hidden_size / result.heads));
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
    const double context = static_cast<double>(result.rope.original_context) * result.rope.factor;
    result.context_length = static_cast<int64_t>(std::min(context, static_cast<double>(kLargestSize)));
  }
  apply_sliding_window(config, object, result);
  result.quantization = parse_quantization(config);
  check_architectures(config, result.model_type);
  refuse_unsupported(config, object);
  return result;
}

LlamaConfig read_config(const fs::path& model) {
  return parse_config(io::read_model_config(model), io::model_config_name(model));
}

LlamaConfig read_config(const io::Checkpoint& checkpoint) {
  return parse_config(checkpoint.config(), checkpoint.config_name());
}

QuantizationConfig QuantizationConfig::of(const std::string& module) const {
  const auto found = modules.find(module);
  return found == modules.end() ? QuantizationConfig{bits, group_size} : found->second;
}

int64_t QuantizationConfig::group_size_of(const std::string& module, int64_t in_features) const {
  const int64_t stated = of(module).group_size;
  return stated == quant::kWholeRow ? in_features : stated;
}

int64_t LlamaConfig::parameters() const { return count_parameters<int64_t>(*this); }

json derived_config(const json& source, const LlamaConfig& config,
                    const std::optional<QuantizationConfig>& quantization) {
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
    json entry = {{"bits", quantization->bits}, {"group_size", quantization->group_size}, {"mode", "affine"}};
    for (const auto& [module, own] : quantization->modules) {
      entry[module] = {{"bits", own.bits}, {"group_size", own.group_size}, {"mode", "affine"}};
    }
    result["quantization"] = entry;
    result["quantization_config"] = entry;
  }
  return result;
}

}  // namespace qalora::model
