#include "meta_params.h"

#include <cmath>
#include <nlohmann/json.hpp>
#include <set>

#include "qalora/core/error.h"
#include "qalora/io/json_file.h"

namespace qalora::io {
namespace {

using nlohmann::json;

constexpr int64_t kLargest = int64_t{1} << 31;
constexpr int64_t kLlama3Vocabulary = 128256;

// The last ones say how the model was run or trained, which changes no weight; multiple_of and ffn_dim_multiplier give
// the width that the tensors have anyway.
const std::set<std::string> kKnown = {"dim",
                                      "n_layers",
                                      "n_heads",
                                      "n_kv_heads",
                                      "head_dim",
                                      "hidden_dim",
                                      "norm_eps",
                                      "vocab_size",
                                      "rope_theta",
                                      "max_seq_len",
                                      "sliding_window",
                                      "use_scaled_rope",
                                      "rope_scaling_factor",
                                      "multiple_of",
                                      "ffn_dim_multiplier",
                                      "max_batch_size",
                                      "model_parallel_size"};

class Params {
 public:
  Params(const json& object, const std::string& name) : object_(object), name_(name) {}

  bool has(const char* key) const { return object_.contains(key) && !object_.at(key).is_null(); }

  std::optional<int64_t> size(const char* key) const {
    if (!has(key)) return std::nullopt;
    const json& value = object_.at(key);
    const bool good =
        value.is_number_integer() && value.get<double>() >= 1 && value.get<double>() <= static_cast<double>(kLargest);
    QALORA_REQUIRE(good, DataError, name_, ": '", key, "' is ", value.dump().substr(0, 60),
                   ", expected a whole number from 1 to ", kLargest);
    return value.get<int64_t>();
  }
  int64_t required(const char* key) const {
    const auto value = size(key);
    QALORA_REQUIRE(value.has_value(), DataError, name_, ": key '", key, "' is missing");
    return *value;
  }
  std::optional<double> positive(const char* key) const {
    if (!has(key)) return std::nullopt;
    const json& value = object_.at(key);
    const bool good = value.is_number() && std::isfinite(value.get<double>()) && value.get<double>() > 0;
    QALORA_REQUIRE(good, DataError, name_, ": '", key, "' is ", value.dump().substr(0, 60),
                   ", expected a positive number");
    return value.get<double>();
  }
  bool flag(const char* key) const {
    if (!has(key)) return false;
    QALORA_REQUIRE(object_.at(key).is_boolean(), DataError, name_, ": '", key, "' is ",
                   object_.at(key).dump().substr(0, 60), ", expected true or false");
    return object_.at(key).get<bool>();
  }

 private:
  const json& object_;
  const std::string& name_;
};

// Not in params.json: what each release was trained on, told as transformers' converter tells them apart.
int64_t context_length(const MetaParams& params, int64_t vocab_size) {
  if (params.context_length) return *params.context_length;
  if (params.scaled_rope) return 131072;             // LLaMA 3.1 and later
  if (vocab_size == kLlama3Vocabulary) return 8192;  // LLaMA 3
  if (params.rope_theta == 1e6)
    return params.sliding_window || params.hidden_dim ? 32768 : 16384;  // Mistral 0.2; Code Llama
  if (params.sliding_window) return 32768;                              // Mistral 0.1
  return params.norm_eps == 1e-5 ? 4096 : 2048;                         // LLaMA 2; 1
}

// LLaMA 3.1's scaling of the frequencies. The file does not say the factor: 8, but 32 in the two small models of 3.2.
json rope_scaling(const MetaParams& params) {
  const bool small = (params.dim == 2048 && params.layers == 16) || (params.dim == 3072 && params.layers == 28);
  return {{"rope_type", "llama3"},
          {"factor", params.rope_factor.value_or(small ? 32.0 : 8.0)},
          {"low_freq_factor", 1.0},
          {"high_freq_factor", 4.0},
          {"original_max_position_embeddings", 8192}};
}

}  // namespace

MetaParams read_meta_params(const fs::path& path) {
  MetaParams params;
  params.name = path.string();
  const json document = read_json_file(path);
  QALORA_REQUIRE(document.is_object(), DataError, params.name, ": expected a JSON object, got ", document.type_name());
  const json& object = document.contains("model") && document["model"].is_object() ? document["model"] : document;
  for (const auto& [key, value] : object.items()) {
    if (kKnown.contains(key) || value.is_null() || value == false) continue;
    throw DataError(message(params.name, ": key '", key, "' (", value.dump().substr(0, 60),
                            ") is not known, so its effect on the result is not either; remove it if it has none"));
  }
  const Params reader(object, params.name);
  params.dim = reader.required("dim");
  params.layers = reader.required("n_layers");
  params.heads = reader.required("n_heads");
  params.kv_heads = reader.size("n_kv_heads").value_or(params.heads);
  QALORA_REQUIRE(reader.has("head_dim") || params.dim % params.heads == 0, DataError, params.name, ": dim ", params.dim,
                 " is not a multiple of n_heads ", params.heads, " and head_dim is not given");
  params.head_dim = reader.size("head_dim").value_or(params.dim / params.heads);
  QALORA_REQUIRE(params.head_dim % 2 == 0, DataError, params.name, ": head_dim ", params.head_dim,
                 " is odd, rotary embedding needs pairs");
  params.hidden_dim = reader.size("hidden_dim");
  // -1: "as many as the tokenizer has", which the embedding knows.
  if (!(reader.has("vocab_size") && object.at("vocab_size") == -1)) params.vocab_size = reader.size("vocab_size");
  params.context_length = reader.size("max_seq_len");
  params.sliding_window = reader.size("sliding_window");
  const auto norm_eps = reader.positive("norm_eps");
  QALORA_REQUIRE(norm_eps.has_value(), DataError, params.name, ": key 'norm_eps' is missing");
  params.norm_eps = *norm_eps;
  params.rope_theta = reader.positive("rope_theta").value_or(10000.0);
  params.scaled_rope = reader.flag("use_scaled_rope");
  params.rope_factor = reader.positive("rope_scaling_factor");
  return params;
}

json hugging_face_config(const MetaParams& params, int64_t vocab_size, int64_t intermediate_size, bool tied_head) {
  QALORA_REQUIRE(!params.vocab_size || *params.vocab_size == vocab_size, DataError, params.name, ": 'vocab_size' is ",
                 *params.vocab_size, ", but the embedding has ", vocab_size, " rows");
  QALORA_REQUIRE(!params.hidden_dim || *params.hidden_dim == intermediate_size, DataError, params.name,
                 ": 'hidden_dim' is ", *params.hidden_dim, ", but feed_forward.w1 has ", intermediate_size, " rows");
  const bool mistral = params.sliding_window.has_value(), llama3 = vocab_size == kLlama3Vocabulary;
  json config = {{"model_type", mistral ? "mistral" : "llama"},
                 {"architectures", {mistral ? "MistralForCausalLM" : "LlamaForCausalLM"}},
                 {"vocab_size", vocab_size},
                 {"hidden_size", params.dim},
                 {"intermediate_size", intermediate_size},
                 {"num_hidden_layers", params.layers},
                 {"num_attention_heads", params.heads},
                 {"num_key_value_heads", params.kv_heads},
                 {"head_dim", params.head_dim},
                 {"hidden_act", "silu"},
                 {"rms_norm_eps", params.norm_eps},
                 {"rope_theta", params.rope_theta},
                 {"max_position_embeddings", context_length(params, vocab_size)},
                 {"tie_word_embeddings", tied_head},
                 {"bos_token_id", llama3 ? 128000 : 1},
                 {"eos_token_id", llama3 ? 128001 : 2}};
  if (params.scaled_rope) config["rope_scaling"] = rope_scaling(params);
  if (mistral) config["sliding_window"] = *params.sliding_window;
  return config;
}

}  // namespace qalora::io
