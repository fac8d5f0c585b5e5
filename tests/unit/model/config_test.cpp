// config.json of the LLaMA family: what is read, and what is refused by name.
#include "qalora/model/config.h"

#include <gtest/gtest.h>

#include <array>
#include <nlohmann/json.hpp>

#include "qalora/core/error.h"
#include "qalora/quant/packed_weight.h"

namespace qalora::model {
namespace {

using nlohmann::json;

json base_json(const char* model_type = "llama") {
  return {{"model_type", model_type},       {"vocab_size", 32000},     {"hidden_size", 4096},
          {"intermediate_size", 11008},     {"num_hidden_layers", 32}, {"num_attention_heads", 32},
          {"max_position_embeddings", 4096}};
}

json with(const json& changes, json base = base_json()) {
  if (!changes.is_null()) base.update(changes);  // {} is null
  return base;
}

LlamaConfig parse(const json& changes) { return parse_config(with(changes), "config.json"); }

// The refusal of the base with `changes`; it must be a DataError that begins with the file's name.
std::string refusal(const json& changes) {
  try {
    parse(changes);
  } catch (const DataError& error) {
    EXPECT_EQ(std::string(error.what()).rfind("config.json: ", 0), 0u) << error.what();
    return error.what();
  }
  ADD_FAILURE() << "not refused: " << changes.dump();
  return "";
}

void expect_refused(const json& changes, const std::string& part) {
  const std::string text = refusal(changes);
  EXPECT_NE(text.find(part), std::string::npos) << "'" << part << "' is not in: " << text;
}

TEST(Config, HeadsAreReadAsWrittenAndOtherwiseDerived) {
  const LlamaConfig mha = parse({});
  EXPECT_EQ(mha.kv_heads, 32);
  EXPECT_EQ(mha.head_dim, 128);
  EXPECT_EQ(parse({{"num_key_value_heads", nullptr}}).kv_heads, 32);
  const LlamaConfig gqa = parse({{"num_key_value_heads", 8}, {"head_dim", 64}});
  EXPECT_EQ(gqa.kv_heads, 8);
  EXPECT_EQ(gqa.head_dim, 64);  // not hidden_size / heads
  EXPECT_EQ(parse({{"head_dim", nullptr}}).head_dim, 128);
  // Mistral's class has 8 key heads where the key is missing, and as many as heads where it is null.
  EXPECT_EQ(parse_config(base_json("mistral"), "c").kv_heads, 8);
  EXPECT_EQ(parse_config(with({{"num_key_value_heads", nullptr}}, base_json("mistral")), "c").kv_heads, 32);
  expect_refused({{"num_key_value_heads", 5}}, "num_attention_heads 32 is not a multiple of num_key_value_heads 5");
  expect_refused({{"num_attention_heads", 33}},
                 "hidden_size 4096 is not a multiple of num_attention_heads 33 and head_dim is not given");
  expect_refused({{"head_dim", 63}}, "head_dim 63 is odd");
}

TEST(Config, DefaultsAreThoseOfTheModelsClass) {
  const LlamaConfig config = parse({{"max_position_embeddings", nullptr}});
  EXPECT_EQ(config.context_length, 2048);
  EXPECT_EQ(config.norm_eps, 1e-6);
  EXPECT_EQ(config.initializer_range, 0.02);
  EXPECT_FALSE(config.tied_head);
  EXPECT_EQ(config.rope.theta, 10000);
  EXPECT_EQ(config.rope.kind, RopeKind::kDefault);
  EXPECT_FALSE(config.quantization.has_value());
  const LlamaConfig other = parse({{"rms_norm_eps", 1e-5}, {"tie_word_embeddings", true}, {"initializer_range", 0.5}});
  EXPECT_EQ(other.norm_eps, 1e-5);
  EXPECT_EQ(other.initializer_range, 0.5);
  EXPECT_TRUE(other.tied_head);
}

TEST(Config, BiasesFollowTheKeysAndTheModelType) {
  const auto biases = [](const char* type, const json& changes) {
    const LlamaConfig c = parse_config(with(changes, base_json(type)), "c");
    return std::array{c.qkv_bias, c.o_bias, c.mlp_bias};
  };
  EXPECT_EQ(biases("llama", {}), (std::array{false, false, false}));
  EXPECT_EQ(biases("llama", {{"attention_bias", true}}), (std::array{true, true, false}));
  EXPECT_EQ(biases("llama", {{"mlp_bias", true}}), (std::array{false, false, true}));
  EXPECT_EQ(biases("qwen2", {}), (std::array{true, false, false}));  // always, and no key says so
}

TEST(Config, ParametersAreCounted) {
  EXPECT_EQ(parse({}).parameters(), 6738415616);  // LLaMA-7B
  EXPECT_EQ(parse({{"tie_word_embeddings", true}}).parameters(), 6738415616 - 32000LL * 4096);
  const LlamaConfig biased = parse({{"attention_bias", true}, {"mlp_bias", true}});
  EXPECT_EQ(biased.parameters(), 6738415616 + 32LL * (4 * 4096 + 2 * 11008 + 4096));
}

TEST(Config, EverySpellingOfARopeKindIsRead) {
  struct Case {
    const char* kind;
    RopeKind expected;
    json settings;
  };
  const Case cases[] = {
      {"linear", RopeKind::kLinear, {{"factor", 4.0}}},
      {"dynamic", RopeKind::kDynamic, {{"factor", 2.0}}},
      {"llama3",
       RopeKind::kLlama3,
       {{"factor", 8.0},
        {"low_freq_factor", 1.0},
        {"high_freq_factor", 4.0},
        {"original_max_position_embeddings", 8192}}},
      {"yarn",
       RopeKind::kYarn,
       {{"factor", 4.0}, {"original_max_position_embeddings", 1024}, {"beta_fast", 16}, {"attention_factor", 1.5}}}};
  for (const Case& c : cases) {
    json oldest = c.settings, old = c.settings, fresh = c.settings;
    oldest["type"] = c.kind;
    old["rope_type"] = c.kind;
    fresh.update({{"rope_type", c.kind}, {"rope_theta", 500000.0}});
    const RopeConfig a = parse({{"rope_theta", 500000.0}, {"rope_scaling", oldest}}).rope;
    EXPECT_EQ(a.kind, c.expected) << c.kind;
    EXPECT_EQ(a.theta, 500000) << c.kind;
    EXPECT_EQ(a.factor, c.settings["factor"].get<double>()) << c.kind;
    EXPECT_EQ(a.original_context, c.settings.value("original_max_position_embeddings", 4096)) << c.kind;
    EXPECT_EQ(parse({{"rope_theta", 500000.0}, {"rope_scaling", old}}).rope, a) << c.kind;
    EXPECT_EQ(parse({{"rope_parameters", fresh}}).rope, a) << c.kind;
    EXPECT_EQ(parse({{"rope_theta", 500000.0}, {"rope_scaling", old}, {"rope_parameters", fresh}}).rope, a) << c.kind;
    EXPECT_NE(parse({{"rope_parameters", {{"rope_type", "default"}, {"rope_theta", 500000.0}}}}).rope, a) << c.kind;
  }
  const RopeConfig llama3 = parse({{"rope_scaling", with({{"type", "llama3"}}, cases[2].settings)}}).rope;
  EXPECT_EQ(llama3.low_freq_factor, 1);
  EXPECT_EQ(llama3.high_freq_factor, 4);
  const RopeConfig yarn =
      parse({{"rope_scaling", with({{"type", "yarn"}, {"truncate", false}, {"mscale", 0.7}}, cases[3].settings)}}).rope;
  EXPECT_EQ(yarn.beta_fast, 16);
  EXPECT_EQ(yarn.beta_slow, 1);
  EXPECT_EQ(yarn.attention_factor, 1.5);
  EXPECT_EQ(yarn.mscale, 0.7);
  EXPECT_FALSE(yarn.truncate);
}

TEST(Config, RopeSpellingsThatContradictEachOtherAreRefused) {
  const json plain = {{"rope_type", "default"}, {"rope_theta", 10000.0}},
             linear = {{"rope_type", "linear"}, {"factor", 8.0}};
  expect_refused({{"rope_scaling", linear}, {"rope_parameters", plain}}, "contradict each other");
  expect_refused({{"rope_scaling", linear}, {"rope_parameters", with({{"factor", 4.0}}, linear)}},
                 "contradict each other");
  expect_refused({{"rope_theta", 500000.0}, {"rope_parameters", plain}},
                 "rope_parameters: 'rope_theta' is 10000, but 500000 in config.json; remove the one that is wrong");
  expect_refused({{"rope_scaling", with({{"rope_theta", 20000.0}}, linear)},
                  {"rope_parameters", with({{"rope_theta", 10000.0}}, linear)}},
                 "but 20000 in config.json: rope_scaling");
  expect_refused({{"rope_scaling", with({{"type", "dynamic"}}, linear)}},
                 "'rope_type' is 'linear', but 'type' is 'dynamic'");
  expect_refused({{"rope_scaling", {{"factor", 8.0}}}}, "'factor' is 8, which the rope type 'default' does not use");
  // The same thing said twice, or by one of the two, is fine.
  EXPECT_EQ(parse({{"rope_scaling", linear}, {"rope_parameters", linear}}).rope.factor, 8);
  EXPECT_EQ(parse({{"rope_theta", 10000.0}, {"rope_scaling", nullptr}, {"rope_parameters", plain}}).rope.theta, 10000);
}

TEST(Config, RopeValuesOutOfRangeAreRefusedByName) {
  const auto linear = [](const json& changes) {
    return json{{"rope_scaling", with(changes, {{"type", "linear"}, {"factor", 8.0}})}};
  };
  const auto yarn = [](const json& changes) {
    return json{{"rope_scaling", with(changes, {{"type", "yarn"}, {"factor", 8.0}})}};
  };
  const json llama3 = {{"type", "llama3"},
                       {"factor", 8.0},
                       {"low_freq_factor", 4.0},
                       {"high_freq_factor", 4.0},
                       {"original_max_position_embeddings", 8192}};
  expect_refused({{"rope_theta", 1.0}}, "'rope_theta' is 1, expected more than 1");  // its logarithm divides
  expect_refused({{"rope_theta", 0}}, "'rope_theta' is 0");
  expect_refused(linear({{"rope_theta", 0.5}}), "rope_scaling: 'rope_theta' is 0.5");
  expect_refused(linear({{"factor", 0.5}}), "'factor' is 0.5");
  expect_refused(linear({{"factor", 1e300}}), "'factor' is 1e+300");
  expect_refused(linear({{"factor", nullptr}}), "key 'factor' is missing");
  expect_refused(linear({{"partial_rotary_factor", 0.5}}), "partial_rotary_factor 0.5 is not supported");
  expect_refused(linear({{"short_factor", {1.0}}}), "key 'short_factor' is not supported");
  expect_refused(yarn({{"attention_factor", 0}}), "'attention_factor' is 0");
  expect_refused(yarn({{"attention_factor", -1.0}}), "'attention_factor' is -1");
  expect_refused(yarn({{"beta_fast", 1}, {"beta_slow", 32}}), "beta_fast 1 is below beta_slow 32");
  expect_refused(yarn({{"beta_fast", 0}}), "'beta_fast' is 0");
  expect_refused(yarn({{"mscale", -1}}), "'mscale' is -1");
  expect_refused(yarn({{"original_max_position_embeddings", 0}}), "'original_max_position_embeddings' is 0");
  expect_refused({{"rope_scaling", llama3}}, "high_freq_factor 4 must be above low_freq_factor 4");
  json without = llama3;
  without.update({{"low_freq_factor", 1.0}});
  without.erase("original_max_position_embeddings");
  expect_refused({{"rope_scaling", without}}, "'original_max_position_embeddings' is missing");
  expect_refused({{"rope_scaling", {{"type", "longrope"}, {"factor", 2}}}}, "rope type 'longrope' is not supported");
  expect_refused({{"rope_scaling", "linear"}}, "expected a JSON object");
}

TEST(Config, ContextIsWhatTheRopeAndTheWindowAllow) {
  const auto context = [](const char* type, const json& changes) {
    return parse_config(with(changes, base_json(type)), "c").context_length;
  };
  EXPECT_EQ(context("llama", {}), 4096);
  EXPECT_EQ(context("llama", {{"rope_scaling", {{"type", "dynamic"}, {"factor", 2.0}}}}), 8192);
  EXPECT_EQ(context("llama", {{"rope_scaling", {{"type", "linear"}, {"factor", 2.0}}}}), 4096);
  EXPECT_EQ(context("llama", {{"rope_scaling", {{"type", "dynamic"}, {"factor", 16000000.0}}}}), 1 << 24);
  // A window that cannot bite changes nothing; one that would bounds the context.
  EXPECT_EQ(context("mistral", {{"sliding_window", 8192}}), 4096);
  EXPECT_EQ(context("mistral", {{"sliding_window", 1024}}), 1024);
  EXPECT_EQ(context("mistral", {{"sliding_window", nullptr}}), 4096);
  // Qwen 2 names a window that is switched off.
  EXPECT_EQ(context("qwen2", {{"sliding_window", 1024}, {"use_sliding_window", false}, {"max_window_layers", 28}}),
            4096);
  EXPECT_EQ(context("qwen2", {{"sliding_window", 1024}, {"use_sliding_window", true}}), 1024);
  EXPECT_EQ(context("qwen2", {{"layer_types", {"full_attention", "sliding_attention"}}}), 4096);
  expect_refused({{"layer_types", {"linear_attention"}}}, "'layer_types' names \"linear_attention\"");
}

TEST(Config, AbsurdOrMistypedSizesAreRefusedByName) {
  for (const char* key :
       {"vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"}) {
    json missing = base_json();
    missing.erase(key);
    EXPECT_THROW(parse_config(missing, "c"), DataError) << key;
    expect_refused({{key, 0}}, message("'", key, "' is 0, expected 1 to"));
    expect_refused({{key, -1}}, message("'", key, "' is -1"));
    expect_refused({{key, 4611686018427387904}}, message("'", key, "' is 4611686018427387904"));
    expect_refused({{key, 1e9}}, message("'", key, "' is 1000000000.0, expected an integer"));
    expect_refused({{key, "7"}}, message("'", key, "' is \"7\", expected an integer"));
  }
  expect_refused({{"num_hidden_layers", 20000}}, "num_hidden_layers 20000 is absurd");
  expect_refused({{"head_dim", 1 << 20}}, "x head_dim 1048576 is absurd");
  // Each size is allowed by itself, their product is not: the count of parameters would not fit 64 bits.
  const json huge = {
      {"hidden_size", 1 << 24}, {"intermediate_size", 1 << 24}, {"num_hidden_layers", 10000}, {"head_dim", 128}};
  expect_refused(huge, "parameters, which is absurd");
  EXPECT_NO_THROW(
      parse({{"hidden_size", 1 << 16}, {"intermediate_size", 1 << 18}, {"num_hidden_layers", 1000}}));  // 10^14
  expect_refused({{"rms_norm_eps", 0}}, "'rms_norm_eps' is 0");
  expect_refused({{"tie_word_embeddings", 1}}, "'tie_word_embeddings' is 1, expected true or false");
  EXPECT_THROW(parse_config(json::array(), "c"), DataError);
}

TEST(Config, OtherArchitecturesAreRefused) {
  expect_refused({{"model_type", "mixtral"}}, "model_type 'mixtral' is not supported");
  expect_refused({{"model_type", nullptr}}, "model_type '' is not supported");
  expect_refused({{"architectures", {"MixtralForCausalLM"}}},
                 "'architectures' names \"MixtralForCausalLM\", which is not supported");
  expect_refused({{"architectures", {"LlamaForCausalLM", "LlamaForSequenceClassification"}}},
                 "\"LlamaForSequenceClassification\"");
  expect_refused({{"architectures", {"MistralForCausalLM"}}}, "model_type 'llama' is read as LlamaForCausalLM");
  expect_refused({{"architectures", "LlamaForCausalLM"}}, "expected a list");
  expect_refused({{"auto_map", {{"AutoModelForCausalLM", "modeling_x.XForCausalLM"}}}}, "'auto_map' names Python code");
  for (const auto& [type, name] : {std::pair{"llama", "LlamaForCausalLM"},
                                   {"llama", "LLaMAForCausalLM"},
                                   {"mistral", "MistralForCausalLM"},
                                   {"qwen2", "Qwen2ForCausalLM"}}) {
    EXPECT_NO_THROW(parse_config(with({{"architectures", {name}}, {"auto_map", json::object()}}, base_json(type)), "c"))
        << name;
  }
}

TEST(Config, KeysThatWouldChangeTheResultAreRefusedUnlessNeutral) {
  struct Case {
    const char* key;
    json neutral, changed;
  };
  const Case cases[] = {{"hidden_act", "silu", "gelu"},
                        {"attention_dropout", 0.0, 0.1},
                        {"partial_rotary_factor", 1.0, 0.5},
                        {"num_local_experts", 0, 8},
                        {"final_logit_softcapping", nullptr, 30.0},
                        {"pruned_heads", json::object(), {{"0", {1}}}},
                        {"add_cross_attention", false, true},
                        {"is_encoder_decoder", false, true},
                        {"tie_encoder_decoder", false, true},
                        {"cross_attention_hidden_size", nullptr, 64}};
  for (const Case& c : cases) {
    EXPECT_NO_THROW(parse({{c.key, c.neutral}})) << c.key;
    EXPECT_NO_THROW(parse({{c.key, nullptr}})) << c.key;
    expect_refused({{c.key, c.changed}}, message("'", c.key, "' is ", c.changed.dump(), ", which changes the result"));
  }
}

TEST(Config, UnknownKeysAreNamed) {
  expect_refused({{"a_new_trick", 3}}, "key 'a_new_trick' (3) is not known");
  // Off, private, or about something else: no effect on the result.
  EXPECT_NO_THROW(parse({{"a_new_trick", false},
                         {"another", nullptr},
                         {"_note", "x"},
                         {"eos_token_id", {2, 7}},
                         {"torch_dtype", "float16"},
                         {"pretraining_tp", 2},
                         {"use_cache", true},
                         {"transformers_version", "4.46.3"}}));
}

TEST(Config, QuantisationIsReadAndForeignMethodsAreRefused) {
  const LlamaConfig config = parse({{"quantization", {{"bits", 3}, {"group_size", 64}}}});
  ASSERT_TRUE(config.quantization.has_value());
  EXPECT_EQ(config.quantization->bits, 3);
  EXPECT_EQ(config.quantization->group_size, 64);
  const json whole_rows = {{"bits", 4}, {"group_size", -1}, {"mode", "affine"}};
  EXPECT_EQ(parse({{"quantization_config", whole_rows}}).quantization->group_size, quant::kWholeRow);
  expect_refused({{"quantization_config", {{"quant_method", "gptq"}, {"bits", 4}, {"group_size", 128}}}},
                 "quant_method 'gptq'");
  expect_refused({{"quantization", {{"bits", 7}, {"group_size", 64}}}}, "'bits' is 7");
  expect_refused({{"quantization", {{"bits", 4}}}}, "'group_size' is missing");
  expect_refused({{"quantization", {{"bits", 4}, {"group_size", 64}, {"mode", "mxfp4"}}}}, "mode 'mxfp4'");
  expect_refused({{"quantization", {{"bits", 4}, {"group_size", 64}, {"lm_head", 3}}}}, "'lm_head'");
  // Settings of single modules: an object, false where it is dense, true where it is as all others.
  const QuantizationConfig own = *parse({{"quantization",
                                          {{"bits", 4},
                                           {"group_size", 64},
                                           {"lm_head", {{"bits", 6}, {"group_size", 32}}},
                                           {"a", false},
                                           {"b", true},
                                           {"c", {{"bits", 4}, {"group_size", 64}}}}}})
                                      .quantization;
  EXPECT_EQ(own.modules.size(), 1u);
  EXPECT_EQ(own.of("lm_head").bits, 6);
  EXPECT_EQ(own.group_size_of("lm_head", 256), 32);
  EXPECT_EQ(own.group_size_of("c", 256), 64);
}

TEST(Config, DerivedConfigSaysTheSameInBothSpellings) {
  const json sources[] = {
      with({{"rope_theta", 500000.0}, {"rope_scaling", {{"type", "linear"}, {"factor", 4.0}}}}),
      with({{"rope_parameters",
             {{"rope_type", "yarn"},
              {"rope_theta", 20000.0},
              {"factor", 4.0},
              {"mscale", 1.0},
              {"mscale_all_dim", 0.9}}}}),
      with({{"rope_parameters", {{"rope_type", "default"}, {"rope_theta", 20000.0}}}, {"tie_word_embeddings", true}}),
      base_json()};
  for (const json& source : sources) {
    const LlamaConfig before = parse_config(source, "before");
    const json derived = derived_config(source, before, QuantizationConfig{3, 64});
    for (const char* only : {"rope_scaling", "rope_parameters", ""}) {
      json one = derived;  // a reader that knows only one spelling gets the same
      if (std::string(only) == "rope_scaling") one.erase("rope_parameters");
      if (std::string(only) == "rope_parameters") one.erase("rope_scaling"), one.erase("rope_theta");
      const LlamaConfig after = parse_config(one, "after");
      EXPECT_EQ(after.rope, before.rope) << one.dump();
      EXPECT_EQ(after.tied_head, before.tied_head);
      EXPECT_EQ(after.quantization->bits, 3);
    }
    EXPECT_FALSE(parse_config(derived_config(derived, before, std::nullopt), "dense").quantization.has_value());
  }
}

}  // namespace
}  // namespace qalora::model
