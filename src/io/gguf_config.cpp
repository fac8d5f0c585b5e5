#include "qalora/io/gguf_config.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstring>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "qalora/core/error.h"

namespace qalora::io {
namespace {

using nlohmann::json;

struct Architecture {
  const char* model_type;
  const char* class_name;
};

const std::map<std::string, Architecture, std::less<>>& architectures() {
  static const std::map<std::string, Architecture, std::less<>> all = {{"llama", {"llama", "LlamaForCausalLM"}},
                                                                       {"qwen2", {"qwen2", "Qwen2ForCausalLM"}},
                                                                       {"qwen3", {"qwen3", "Qwen3ForCausalLM"}}};
  return all;
}

// A number that was written as f32 reads as the decimal that was meant: 1e-05, not 9.99999974e-06.
double decimal(double value) {
  const auto narrow = static_cast<float>(value);
  if (static_cast<double>(narrow) != value) return value;
  std::array<char, 64> text;
  const auto end = std::to_chars(text.data(), text.data() + text.size(), narrow).ptr;
  double result = value;
  std::from_chars(text.data(), end, result);
  return result;
}

class Metadata {
 public:
  Metadata(const GgufContents& file, std::string architecture) : file_(file), architecture_(std::move(architecture)) {}

  std::string key(const char* name) const { return architecture_ + "." + name; }
  bool has(const char* name) const { return file_.has(key(name)); }

  // Some files give one number a layer; models whose layers differ are not read.
  std::optional<int64_t> size(const char* name) const {
    const auto found = file_.metadata.find(key(name));
    if (found == file_.metadata.end()) return std::nullopt;
    if (!found->second.is_array) return file_.integer(key(name));
    const std::vector<int64_t> all = *file_.integers(key(name));
    const bool equal = !all.empty() && std::all_of(all.begin(), all.end(),
                                                   [&](int64_t value) { return value == all[0] && value >= 0; });
    QALORA_REQUIRE(equal, DataError, file_.name, ": metadata '", key(name),
                   "' differs from layer to layer, which is not supported");
    return all[0];
  }

  int64_t required(const char* name) const {
    const auto value = size(name);
    QALORA_REQUIRE(value, DataError, file_.name, ": metadata '", key(name), "' is missing");
    return *value;
  }

  std::optional<double> number(const char* name) const {
    const auto value = file_.number(key(name));
    return value ? std::optional(decimal(*value)) : std::nullopt;
  }

  // What a file may say only with this value.
  void expect(const char* name, double value, const char* why) const {
    const auto found = number(name);
    QALORA_REQUIRE(!found || *found == value, DataError, file_.name, ": metadata '", key(name), "' is ", *found, ", ",
                   why);
  }

  const GgufContents& file() const { return file_; }

 private:
  const GgufContents& file_;
  std::string architecture_;
};

// Keys behind "ARCHITECTURE." that are read here or say nothing about the result.
const std::set<std::string_view>& known_keys() {
  static const std::set<std::string_view> known = {"context_length",
                                                   "embedding_length",
                                                   "block_count",
                                                   "feed_forward_length",
                                                   "attention.head_count",
                                                   "attention.head_count_kv",
                                                   "attention.layer_norm_rms_epsilon",
                                                   "attention.key_length",
                                                   "attention.value_length",
                                                   "attention.sliding_window",
                                                   "attention.causal",
                                                   "rope.dimension_count",
                                                   "rope.freq_base",
                                                   "rope.scale_linear",
                                                   "rope.scaling.type",
                                                   "rope.scaling.factor",
                                                   "rope.scaling.original_context_length",
                                                   "rope.scaling.finetuned",
                                                   "rope.scaling.attn_factor",
                                                   "rope.scaling.yarn_log_multiplier",
                                                   "rope.scaling.yarn_beta_fast",
                                                   "rope.scaling.yarn_beta_slow",
                                                   "rope.scaling.yarn_ext_factor",
                                                   "rope.scaling.yarn_attn_factor",
                                                   "vocab_size",
                                                   "expert_count",
                                                   "expert_used_count",
                                                   "tensor_data_layout",
                                                   "use_parallel_residual"};
  return known;
}

void refuse_unknown(const GgufContents& file, const std::string& architecture) {
  for (const auto& [key, value] : file.metadata) {
    if (!key.starts_with(architecture + ".")) continue;
    QALORA_REQUIRE(known_keys().contains(std::string_view(key).substr(architecture.size() + 1)), DataError, file.name,
                   ": metadata '", key, "' is not known, so its effect on the result is not either");
  }
}

void refuse_other_kinds(const GgufContents& file) {
  const std::string type = file.text("general.type").value_or("model");
  QALORA_REQUIRE(type != "adapter", DataError, file.name,
                 ": is an adapter, not a model; adapters are read from PEFT folders");
  QALORA_REQUIRE(type == "model", DataError, file.name, ": metadata 'general.type' is '", type, "', expected 'model'");
  QALORA_REQUIRE(file.integer("split.count").value_or(1) <= 1, DataError, file.name,
                 ": is one part of several; join them with llama.cpp's 'llama-gguf-split --merge'");
}

std::string architecture_of(const GgufContents& file) {
  const auto name = file.text("general.architecture");
  QALORA_REQUIRE(name, DataError, file.name, ": metadata 'general.architecture' is missing; expected a model in GGUF");
  QALORA_REQUIRE(architectures().contains(*name), DataError, file.name, ": architecture '", name->substr(0, 60),
                 "' is not supported (llama, which Mistral's models use too, qwen2 and qwen3 are)");
  return *name;
}

const GgufTensor* find(const GgufContents& file, const std::string& name) {
  const auto found = file.tensors.find(name);
  return found == file.tensors.end() ? nullptr : &found->second;
}

json llama3_scaling(const GgufContents& file, const GgufTensor& stored, double theta, int64_t head_dim) {
  const bool fits = stored.type == static_cast<uint32_t>(GgufType::kF32) && stored.shape.size() == 1 &&
                    stored.shape[0] == head_dim / 2;
  QALORA_REQUIRE(fits, DataError, file.name, ": tensor 'rope_freqs.weight' must be F32 [", head_dim / 2,
                 "], half of the head's size");
  std::vector<float> divisors(static_cast<size_t>(stored.shape[0]));
  std::memcpy(divisors.data(), stored.bytes.data(), stored.bytes.size());
  const auto fitted = fit_llama3(divisors, theta);
  QALORA_REQUIRE(fitted, DataError, file.name,
                 ": tensor 'rope_freqs.weight' is not what LLaMA 3's scaling gives for any parameters; other "
                 "rotary scalings are read from the original model's config.json");
  return {{"rope_type", "llama3"},
          {"factor", fitted->factor},
          {"low_freq_factor", fitted->low_freq_factor},
          {"high_freq_factor", fitted->high_freq_factor},
          {"original_max_position_embeddings", fitted->original_context}};
}

json yarn_scaling(const Metadata& metadata, double factor) {
  metadata.expect("rope.scaling.attn_factor", 1, "only 1 is supported");
  metadata.expect("rope.scaling.yarn_attn_factor", 1, "only 1 is supported");
  metadata.expect("rope.scaling.yarn_ext_factor", 1, "only 1 is supported");
  metadata.expect("rope.scaling.yarn_log_multiplier", 0, "only 0 is supported");
  json result = {{"rope_type", "yarn"}, {"factor", factor}};
  if (const auto context = metadata.size("rope.scaling.original_context_length"))
    result["original_max_position_embeddings"] = *context;
  if (const auto fast = metadata.number("rope.scaling.yarn_beta_fast")) result["beta_fast"] = *fast;
  if (const auto slow = metadata.number("rope.scaling.yarn_beta_slow")) result["beta_slow"] = *slow;
  return result;
}

// null: none
json rope_scaling(const Metadata& metadata, double theta, int64_t head_dim) {
  const GgufContents& file = metadata.file();
  const GgufTensor* divisors = find(file, "rope_freqs.weight");
  const std::string type = file.text(metadata.key("rope.scaling.type")).value_or("linear");
  const double factor =
      metadata.number("rope.scaling.factor").value_or(metadata.number("rope.scale_linear").value_or(1));
  QALORA_REQUIRE(type == "none" || type == "linear" || type == "yarn", DataError, file.name, ": metadata '",
                 metadata.key("rope.scaling.type"), "' is '", type.substr(0, 60),
                 "', which is not supported (none, linear and yarn are)");
  const bool scaled = type != "none" && factor != 0 && factor != 1;
  QALORA_REQUIRE(divisors == nullptr || !scaled, DataError, file.name,
                 ": has rope_freqs.weight and a rotary scaling of type '", type, "' at once, which no model here has");
  if (divisors != nullptr) return llama3_scaling(file, *divisors, theta, head_dim);
  if (!scaled) return nullptr;
  return type == "yarn" ? yarn_scaling(metadata, factor) : json{{"rope_type", "linear"}, {"factor", factor}};
}

// A layer's biases: all or none, as the models that have them do.
bool has_bias(const GgufContents& file, const std::vector<std::string>& parts) {
  size_t there = 0;
  for (const std::string& part : parts) there += find(file, "blk.0." + part + ".bias") != nullptr ? 1 : 0;
  QALORA_REQUIRE(there == 0 || there == parts.size(), DataError, file.name,
                 ": some of the biases of layer 0 are missing ('blk.0.", parts[0],
                 ".bias' and those beside it); models with a part of them are not supported");
  return there > 0;
}

void add_tokens(const GgufContents& file, json& config) {
  for (const auto& [key, name] :
       {std::pair{"tokenizer.ggml.bos_token_id", "bos_token_id"}, {"tokenizer.ggml.eos_token_id", "eos_token_id"}}) {
    if (const auto id = file.integer(key)) config[name] = *id;
  }
}

void add_biases(const GgufContents& file, const std::string& architecture, json& config) {
  if (architecture == "llama") config["attention_bias"] = has_bias(file, {"attn_q", "attn_k", "attn_v", "attn_output"});
  if (architecture == "qwen3") config["attention_bias"] = false;
  if (architecture == "llama" && has_bias(file, {"ffn_gate", "ffn_up", "ffn_down"})) config["mlp_bias"] = true;
}

}  // namespace

std::vector<double> llama3_divisors(const Llama3Scaling& scaling, double theta, int64_t head_dim) {
  std::vector<double> result(static_cast<size_t>(head_dim / 2));
  for (size_t i = 0; i < result.size(); ++i) {
    const double wavelength = 2 * M_PI * std::pow(theta, 2.0 * static_cast<double>(i) / static_cast<double>(head_dim));
    const double turns = static_cast<double>(scaling.original_context) / wavelength;  // over the trained context
    const double t = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor);
    result[i] = turns > scaling.high_freq_factor  ? 1
                : turns < scaling.low_freq_factor ? scaling.factor
                                                  : 1 / ((1 - t) / scaling.factor + t);
  }
  return result;
}

namespace {

bool gives(const Llama3Scaling& scaling, const std::vector<float>& divisors, double theta) {
  const std::vector<double> made = llama3_divisors(scaling, theta, 2 * static_cast<int64_t>(divisors.size()));
  for (size_t i = 0; i < made.size(); ++i) {
    if (!(std::abs(made[i] - divisors[i]) <= 1e-6 * made[i])) return false;
  }
  return true;
}

// t is linear in the turns over the context, t = (turns - low) / (high - low): two blended entries give low and high as
// multiples of the context's length.
std::optional<Llama3Scaling> solve_blend(const std::vector<float>& divisors, double theta, double factor) {
  const auto d = static_cast<double>(2 * divisors.size());
  double x[2] = {0, 0}, t[2] = {0, 0};
  int found = 0;
  for (size_t i = 0; i < divisors.size(); ++i) {
    const double blend = (1 / static_cast<double>(divisors[i]) - 1 / factor) / (1 - 1 / factor);
    if (!(blend > 1e-4 && blend < 1 - 1e-4)) continue;
    const int at = found == 0 ? 0 : 1;  // the first and the last: the longest lever
    x[at] = 1 / (2 * M_PI * std::pow(theta, 2.0 * static_cast<double>(i) / d));
    t[at] = blend;
    ++found;
  }
  if (found < 2 || !(x[0] > x[1])) return std::nullopt;
  const double slope = (t[0] - t[1]) / (x[0] - x[1]), zero = x[1] - t[1] / slope;  // low / context
  if (!(slope > 0 && zero > 0)) return std::nullopt;
  Llama3Scaling result{.factor = factor};
  const auto context = static_cast<double>(result.original_context);
  result.low_freq_factor = zero * context;
  result.high_freq_factor = (zero + 1 / slope) * context;
  return result;
}

}  // namespace

std::optional<Llama3Scaling> fit_llama3(const std::vector<float>& divisors, double theta) {
  if (divisors.empty()) return std::nullopt;
  const double factor = decimal(*std::max_element(divisors.begin(), divisors.end()));
  if (!(std::isfinite(factor) && factor > 1)) return std::nullopt;
  for (int64_t context = 8192; context >= 16; context /= 2) {
    for (const int64_t length : {context, 8192 * (8192 / context)}) {
      const Llama3Scaling usual{.factor = factor, .original_context = length};
      if (gives(usual, divisors, theta)) return usual;
    }
  }
  const auto solved = solve_blend(divisors, theta, factor);
  return solved && gives(*solved, divisors, theta) ? solved : std::nullopt;
}

json gguf_config(const GgufContents& file) {
  refuse_other_kinds(file);
  const std::string architecture = architecture_of(file);
  refuse_unknown(file, architecture);
  const Metadata metadata(file, architecture);
  metadata.expect("expert_count", 0, "mixtures of experts are not supported");
  QALORA_REQUIRE(file.flag(metadata.key("attention.causal")).value_or(true), DataError, file.name,
                 ": is not a causal model");
  QALORA_REQUIRE(!file.flag(metadata.key("use_parallel_residual")).value_or(false), DataError, file.name,
                 ": has parallel residuals, which is not supported");
  const GgufTensor* embedding = find(file, "token_embd.weight");
  QALORA_REQUIRE(embedding != nullptr && embedding->shape.size() == 2, DataError, file.name,
                 ": tensor 'token_embd.weight' is missing or no matrix");

  const int64_t hidden = metadata.required("embedding_length"), heads = metadata.required("attention.head_count");
  QALORA_REQUIRE(heads > 0, DataError, file.name, ": metadata '", metadata.key("attention.head_count"), "' is 0");
  const int64_t head_dim = metadata.size("attention.key_length").value_or(hidden / heads);
  metadata.expect("attention.value_length", static_cast<double>(head_dim),
                  "unlike the keys' length, which is not supported");
  metadata.expect("rope.dimension_count", static_cast<double>(head_dim),
                  "but the heads are of another size; partial rotation is not supported");
  const double theta = metadata.number("rope.freq_base").value_or(10000);
  const auto epsilon = metadata.number("attention.layer_norm_rms_epsilon");
  QALORA_REQUIRE(epsilon, DataError, file.name, ": metadata '", metadata.key("attention.layer_norm_rms_epsilon"),
                 "' is missing");
  json config = {{"architectures", {architectures().at(architecture).class_name}},
                 {"model_type", architectures().at(architecture).model_type},
                 {"vocab_size", embedding->shape[0]},
                 {"hidden_size", hidden},
                 {"intermediate_size", metadata.required("feed_forward_length")},
                 {"num_hidden_layers", metadata.required("block_count")},
                 {"num_attention_heads", heads},
                 {"num_key_value_heads", metadata.size("attention.head_count_kv").value_or(heads)},
                 {"head_dim", head_dim},
                 {"max_position_embeddings", metadata.required("context_length")},
                 {"rms_norm_eps", *epsilon},
                 {"hidden_act", "silu"},
                 {"rope_theta", theta},
                 {"tie_word_embeddings", find(file, "output.weight") == nullptr}};
  if (json scaling = rope_scaling(metadata, theta, head_dim); !scaling.is_null())
    config["rope_scaling"] = std::move(scaling);
  if (const auto window = metadata.size("attention.sliding_window"); window && *window > 0) {
    config["sliding_window"] = *window;
    if (architecture != "llama") config["use_sliding_window"] = true;
  }
  add_biases(file, architecture, config);
  add_tokens(file, config);
  return config;
}

}  // namespace qalora::io
