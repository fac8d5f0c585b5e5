// From a folder to a model: every tensor in its place, and what does not fit is named.
#include "qalora/model/load.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "qalora/core/error.h"
#include "unit/model/random_checkpoint.h"

namespace qalora::model {
namespace {

using nlohmann::json;
using test::expect_part;
using test::refusal;
using test::rewrite;
using test::TempDir;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN(), kInfinity = std::numeric_limits<double>::infinity();

void change_config(const fs::path& folder, const json& changes) {
  json config = io::read_json_file(folder / "config.json");
  config.update(changes);
  io::write_json_file(folder / "config.json", config);
}

TEST(Load, PutsEveryTensorInItsPlace) {
  TempDir dir;
  json config = test::random_config_json();
  config.update({{"attention_bias", true}, {"mlp_bias", true}});
  test::write_random_dense(dir / "dense", config);
  for (const auto& [name, rows] :
       {std::pair{"self_attn.k_proj", 32}, {"self_attn.o_proj", 64}, {"mlp.down_proj", 64}}) {
    const at::Tensor bias = tensor::RandomStream(1, name).normal_tensor({rows}, 1.0).to(at::kHalf);
    rewrite(dir / "dense", message("model.layers.1.", name, ".bias"), bias);
  }
  const Llama model = load_model(dir / "dense", {});
  const io::Checkpoint checkpoint(dir / "dense");
  const auto expect_stored = [&](const at::Tensor& tensor, const std::string& name) {
    EXPECT_TRUE(at::equal(tensor.to(at::kFloat), checkpoint.read(name).to(at::kFloat))) << name;
  };
  expect_stored(model.embedding, "model.embed_tokens.weight");
  expect_stored(model.final_norm, "model.norm.weight");
  expect_stored(model.head, "lm_head.weight");
  EXPECT_FALSE(at::equal(model.head, model.embedding.to(at::kFloat)));
  ASSERT_EQ(model.layers.size(), 2u);
  const Layer& layer = model.layers[1];
  expect_stored(layer.attention_norm, "model.layers.1.input_layernorm.weight");
  expect_stored(layer.mlp_norm, "model.layers.1.post_attention_layernorm.weight");
  // Spelt out here: the table that the loader goes by must not test itself.
  for (const auto& [linear, name] : {std::pair{&layer.q, "self_attn.q_proj"},
                                     {&layer.k, "self_attn.k_proj"},
                                     {&layer.v, "self_attn.v_proj"},
                                     {&layer.o, "self_attn.o_proj"},
                                     {&layer.gate, "mlp.gate_proj"},
                                     {&layer.up, "mlp.up_proj"},
                                     {&layer.down, "mlp.down_proj"}}) {
    expect_stored(linear->dense(), message("model.layers.1.", name, ".weight"));
    expect_stored(linear->bias, message("model.layers.1.", name, ".bias"));
  }
  EXPECT_FALSE(model.layers[0].q.dense().requires_grad());
  EXPECT_TRUE(load_model(dir / "dense", {.trainable = true}).layers[0].q.dense().requires_grad());
  EXPECT_EQ(load_model(dir / "dense", {.compute = at::kBFloat16}).layers[0].q.dense().scalar_type(), at::kBFloat16);
}

TEST(Load, ATiedHeadIsTheEmbedding) {
  TempDir dir;
  json config = test::random_config_json();
  config["tie_word_embeddings"] = true;
  test::write_random_dense(dir / "dense", config);
  const Llama model = load_model(dir / "dense", {});
  EXPECT_TRUE(model.head.is_same(model.embedding));
  // A spare head and old exporters' constants are left alone.
  rewrite(dir / "dense", "lm_head.weight", at::zeros({400, 64}, at::kHalf));
  rewrite(dir / "dense", "model.layers.0.self_attn.rotary_emb.inv_freq", at::zeros({8}));
  EXPECT_TRUE(at::equal(load_model(dir / "dense", {}).head, model.head));
}

TEST(Load, DenseTensorsThatDoNotFitAreNamed) {
  const std::string weight = "model.layers.1.mlp.up_proj.weight";
  const auto why = [&](const std::string& name, const at::Tensor& value) {
    TempDir dir;
    test::write_random_dense(dir / "dense");
    rewrite(dir / "dense", name, value);
    const std::string text = refusal<DataError>([&] { load_model(dir / "dense", {}); });
    EXPECT_EQ(text.rfind((dir / "dense").string(), 0), 0u) << text;  // the path first
    return text;
  };
  expect_part(why(weight, at::Tensor()), "no tensor '" + weight + "'");
  expect_part(why(weight, at::zeros({160, 65}, at::kHalf)),
              "tensor '" + weight + "' has shape [160, 65], config.json asks for [160, 64]");
  expect_part(why(weight, at::zeros({64, 160}, at::kHalf)), "has shape [64, 160]");
  expect_part(why(weight, at::zeros({160, 64}, at::kInt)), "is I32, expected F32, F16 or BF16");
  const std::string extra = "model.layers.2.mlp.up_proj.weight";
  expect_part(why(extra, at::zeros({160, 64})), "'" + extra + "' is not part of a llama model");
  expect_part(why("model.layers.0.self_attn.q_norm.weight", at::zeros({16})),
              "'model.layers.0.self_attn.q_norm.weight' is not part of");
  expect_part(why("model.layers.0.mlp.up_proj.bias", at::zeros({160})),
              "'model.layers.0.mlp.up_proj.bias' is not part of");
  expect_part(why("model.layers.1.mlp.up_proj.scales", at::zeros({160, 2})),
              "is packed, but config.json has no 'quantization' entry");
}

TEST(Load, WeightsThatAreNotFiniteAreNamed) {
  for (const auto& [name, rows, columns] : {std::tuple{"model.embed_tokens.weight", 400, 64},
                                            {"lm_head.weight", 400, 64},
                                            {"model.layers.0.self_attn.q_proj.weight", 64, 64},
                                            {"model.norm.weight", 64, 0}}) {
    for (const double bad : {kNan, kInfinity, 0.5}) {
      TempDir dir;
      test::write_random_dense(dir / "dense");
      at::Tensor value = columns > 0 ? at::ones({rows, columns}, at::kHalf) : at::ones({rows}, at::kHalf);
      value.flatten()[7] = bad;
      rewrite(dir / "dense", name, value);
      if (std::isfinite(bad)) {
        EXPECT_NO_THROW(load_model(dir / "dense", {})) << name;
        continue;
      }
      expect_part(refusal<DataError>([&] { load_model(dir / "dense", {}); }),
                  message("tensor '", name, "' holds NaN or infinite values"));
    }
  }
}

TEST(Load, PackedTensorsThatDoNotFitAreNamed) {
  TempDir dir;
  test::write_random_dense(dir / "dense");
  const std::string module = "model.layers.1.mlp.up_proj";  // [160, 64], two groups of 32
  const auto why = [&](const std::string& name, const at::Tensor& value) {
    fs::remove_all(dir / "int4");
    test::quantize_to(dir / "dense", dir / "int4", 4, 32);
    rewrite(dir / "int4", name, value);
    return refusal<DataError>([&] { load_model(dir / "int4", {}); });
  };
  at::Tensor scales = at::ones({160, 2});
  scales[3][1] = kNan;
  expect_part(why(module + ".scales", scales), module + "': scales of row 3, group 1 is not finite");
  expect_part(why(module + ".biases", scales * kInfinity), module + "': offsets of row 0, group 0 is not finite");
  expect_part(why(module + ".biases", at::ones({160, 3})), "[160, 3]");
  expect_part(why(module + ".biases", at::Tensor()), "no tensor '" + module + ".biases'");
  expect_part(why(module + ".weight", at::zeros({160, 9}, at::kInt)), "[160, 9]");
  expect_part(why(module + ".weight", at::zeros({160, 8})), "expected U32 for packed codes");
  expect_part(why(module + ".weight", at::zeros({160, 64}, at::kHalf)), "is F16 [160, 64], expected U32");
  expect_part(why("model.norm.scales", at::ones({1})), "'model.norm.weight' is F16 [64], expected U32");
  test::quantize_to(dir / "dense", dir / "other", 4, 32);
  expect_part(refusal<UserError>([&] { load_model(dir / "other", {.trainable = true}); }),
              "method 'full' trains a dense checkpoint");
  change_config(dir / "other", {{"quantization", {{"bits", 2}, {"group_size", 32}}}, {"quantization_config", nullptr}});
  EXPECT_THROW(load_model(dir / "other", {}), DataError);
}

TEST(Load, AbsurdSizesInTheConfigAreRefusedBeforeAnythingIsAllocated) {
  TempDir dir;
  test::write_random_dense(dir / "dense");
  const auto why = [&](const json& changes) {
    change_config(dir / "dense", changes);
    return refusal<DataError>([&] { load_model(dir / "dense", {}); });
  };
  expect_part(why({{"num_hidden_layers", 9999}}), "no tensor 'model.layers.2.input_layernorm.weight'");
  expect_part(why({{"num_hidden_layers", 2}, {"vocab_size", 1 << 24}}), "config.json asks for [16777216, 64]");
  expect_part(why({{"vocab_size", 1LL << 40}}), "'vocab_size' is 1099511627776");
}

TEST(Load, AnAdapterMustFitItsBase) {
  TempDir dir;
  test::write_random_dense(dir / "dense");
  test::quantize_to(dir / "dense", dir / "int4", 4, 32);
  test::quantize_to(dir / "dense", dir / "int3", 3, 32);
  test::quantize_to(dir / "dense", dir / "wide", 4, 64);
  const io::AdapterFile good = test::random_adapter(dir / "int4", io::Pooling::kSum, 0.1);
  const auto load = [&](const char* base, const io::AdapterFile& adapter) {
    fs::remove_all(dir / "adapter");
    test::write_adapter_to(dir / "adapter", adapter);
    return load_model_with_adapter(dir / base, dir / "adapter", {});
  };
  const Llama model = load("int4", good);
  const Linear& linear = model.layers[1].up;
  ASSERT_NE(linear.adapter, nullptr);
  EXPECT_TRUE(at::equal(linear.adapter->a, good.modules.at(linear.module()).a));
  EXPECT_EQ(load_model_with_adapter(dir / "int4", {}, {}).layers[1].up.adapter, nullptr);
  const auto why = [&](const char* base, const io::AdapterFile& adapter) {
    const std::string text = refusal<DataError>([&] { load(base, adapter); });
    EXPECT_EQ(text.rfind((dir / "adapter").string(), 0), 0u) << text;
    return text;
  };
  expect_part(why("int3", good), "was trained on another base");
  expect_part(why("wide", good), "group_size 32 does not match the model's 64");
  expect_part(why("dense", good), "this model is dense");
  io::AdapterFile other = good;
  other.modules["model.layers.7.mlp.up_proj"] = good.modules.at("model.layers.1.mlp.up_proj");
  expect_part(why("int4", other), "'model.layers.7.mlp.up_proj' is not a linear layer of this model");
  other = good;
  other.modules["model.layers.1.mlp.up_proj"].b = at::zeros({64, 4});
  expect_part(why("int4", other), "'model.layers.1.mlp.up_proj' has A");
}

TEST(Load, ARandomStartIsScaledForItsDepth) {
  LlamaConfig config = parse_config(test::random_config_json(), "c");
  config.initializer_range = 0.1;
  const Llama model = new_model(config, 3);
  const auto deviation = [](const at::Tensor& t) { return t.std().item<double>(); };
  // The deviation of n normal numbers is known to sigma / sqrt(2 n); five of those.
  const auto room = [](const at::Tensor& t, double sigma) {
    return 5 * sigma / std::sqrt(2.0 * static_cast<double>(t.numel()));
  };
  const at::Tensor q = model.layers[0].q.dense(), down = model.layers[1].down.dense();
  EXPECT_NEAR(deviation(q), 0.1, room(q, 0.1));
  EXPECT_NEAR(deviation(down), 0.1 / 2, room(down, 0.05));  // sqrt(2 x 2 layers)
  EXPECT_TRUE(at::equal(model.layers[0].mlp_norm, at::ones({64})));
  EXPECT_TRUE(at::equal(new_model(config, 3).layers[0].q.dense(), q));
  EXPECT_FALSE(at::equal(new_model(config, 4).layers[0].q.dense(), q));
  EXPECT_FALSE(at::equal(model.layers[1].q.dense(), q));
  config.quantization = QuantizationConfig{4, 32};
  EXPECT_THROW(new_model(config, 3), UserError);
}

TEST(Load, WhatIsSavedIsWhatIsLoaded) {
  TempDir dir;
  const json config = test::random_config_json();
  const Llama model = new_model(parse_config(config, "c"), 8);
  fs::create_directories(dir / "f32");
  save_dense(model, dir / "f32", config, at::kFloat);
  const auto loaded = named_weights(load_model(dir / "f32", {}));
  EXPECT_EQ(loaded.size(), 21u);
  for (const auto& [name, value] : named_weights(model)) EXPECT_TRUE(at::equal(loaded.at(name), value)) << name;
  EXPECT_FALSE(at::equal(named_weights(new_model(parse_config(config, "c"), 9)).at("lm_head.weight"),
                         loaded.at("lm_head.weight")));
  Llama broken = new_model(parse_config(config, "c"), 8);
  broken.final_norm = at::full({64}, 1e6);  // too large for fp16
  const std::string text = refusal<DivergedError>([&] { save_dense(broken, dir / "f32", config, at::kHalf); });
  expect_part(text, "'model.norm.weight' is not finite in F16");
}

}  // namespace
}  // namespace qalora::model
