#include "qalora/io/meta_folder.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <functional>
#include <nlohmann/json.hpp>

#include "qalora/core/error.h"
#include "qalora/io/checkpoint.h"
#include "qalora/io/json_file.h"
#include "qalora/io/model_files.h"
#include "support/support.h"
#include "torch_archive.h"

namespace qalora::io {
namespace {

using test::TempDir;
using Tensors = std::map<std::string, at::Tensor>;

// torch.save of f32 tensors.
void write_torch(const fs::path& path, const Tensors& tensors) {
  std::vector<std::pair<std::string, std::string>> entries = {{"m/data.pkl", ""}};
  std::vector<std::pair<std::string, test::TensorText>> table;
  for (const auto& [name, tensor] : tensors) {
    const at::Tensor stored = tensor.contiguous();
    const std::string key = std::to_string(table.size());
    table.push_back(
        {name,
         {.key = key, .elements = stored.numel(), .shape = stored.sizes().vec(), .strides = stored.strides().vec()}});
    const auto bytes = tensor_bytes(stored);
    entries.emplace_back("m/data/" + key, std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
  }
  entries[0].second = test::pickle(test::pickled_state(table));
  test::write_file(path, test::make_zip(entries).bytes);
}

constexpr int64_t kDim = 8, kHeads = 2, kKvHeads = 1, kHidden = 12, kVocabulary = 10;

at::Tensor numbers(at::IntArrayRef shape, int64_t start) {
  int64_t count = 1;
  for (const int64_t size : shape) count *= size;
  return (at::arange(count, at::kFloat) + static_cast<float>(start)).reshape(shape);
}

// A model of one layer as Hugging Face has it.
Tensors hugging_face() {
  const std::string layer = "model.layers.0.";
  return {{"model.embed_tokens.weight", numbers({kVocabulary, kDim}, 0)},
          {"model.norm.weight", numbers({kDim}, 100)},
          {"lm_head.weight", numbers({kVocabulary, kDim}, 200)},
          {layer + "input_layernorm.weight", numbers({kDim}, 300)},
          {layer + "post_attention_layernorm.weight", numbers({kDim}, 400)},
          {layer + "self_attn.q_proj.weight", numbers({kDim, kDim}, 500)},
          {layer + "self_attn.k_proj.weight", numbers({kDim / kHeads * kKvHeads, kDim}, 600)},
          {layer + "self_attn.v_proj.weight", numbers({kDim / kHeads * kKvHeads, kDim}, 700)},
          {layer + "self_attn.o_proj.weight", numbers({kDim, kDim}, 800)},
          {layer + "mlp.gate_proj.weight", numbers({kHidden, kDim}, 900)},
          {layer + "mlp.down_proj.weight", numbers({kDim, kHidden}, 1000)},
          {layer + "mlp.up_proj.weight", numbers({kHidden, kDim}, 1100)}};
}

// What transformers' converter does to q and k, undone: [heads, 2, half, in] -> [heads, half, 2, in].
at::Tensor interleaved(const at::Tensor& weight, int64_t heads) {
  const int64_t half = weight.size(0) / heads / 2;
  return weight.reshape({heads, 2, half, weight.size(1)}).transpose(1, 2).reshape(weight.sizes());
}

// As Meta would have saved it in so many parts.
std::vector<Tensors> meta_parts(int64_t parts, bool embedding_by_rows) {
  const Tensors whole = hugging_face();
  const std::string layer = "model.layers.0.";
  std::vector<Tensors> result;
  for (int64_t part = 0; part < parts; ++part) {
    const auto slice = [&](const at::Tensor& tensor, int64_t dimension) {
      return tensor.chunk(parts, dimension)[part];
    };
    const auto at_layer = [&](const char* name) { return whole.at(layer + name); };
    result.push_back(
        {{"tok_embeddings.weight", slice(whole.at("model.embed_tokens.weight"), embedding_by_rows ? 0 : 1)},
         {"norm.weight", whole.at("model.norm.weight")},
         {"output.weight", slice(whole.at("lm_head.weight"), 0)},
         {"rope.freqs", numbers({2}, 0)},
         {"layers.0.attention_norm.weight", at_layer("input_layernorm.weight")},
         {"layers.0.ffn_norm.weight", at_layer("post_attention_layernorm.weight")},
         {"layers.0.attention.wq.weight", slice(interleaved(at_layer("self_attn.q_proj.weight"), kHeads), 0)},
         {"layers.0.attention.wk.weight", slice(interleaved(at_layer("self_attn.k_proj.weight"), kKvHeads), 0)},
         {"layers.0.attention.wv.weight", slice(at_layer("self_attn.v_proj.weight"), 0)},
         {"layers.0.attention.wo.weight", slice(at_layer("self_attn.o_proj.weight"), 1)},
         {"layers.0.feed_forward.w1.weight", slice(at_layer("mlp.gate_proj.weight"), 0)},
         {"layers.0.feed_forward.w2.weight", slice(at_layer("mlp.down_proj.weight"), 1)},
         {"layers.0.feed_forward.w3.weight", slice(at_layer("mlp.up_proj.weight"), 0)}});
  }
  return result;
}

nlohmann::json params() {
  return {{"dim", kDim},      {"n_layers", 1},    {"n_heads", kHeads}, {"n_kv_heads", kKvHeads},
          {"norm_eps", 1e-5}, {"vocab_size", -1}, {"multiple_of", 4}};
}

void write_folder(const fs::path& folder, const std::vector<Tensors>& parts,
                  const nlohmann::json& settings = params()) {
  write_json_file(folder / "params.json", settings);
  for (size_t part = 0; part < parts.size(); ++part)
    write_torch(folder / ("consolidated.0" + std::to_string(part) + ".pth"), parts[part]);
}

int count_different(const MetaFolder& folder) {
  int different = 0;
  for (const auto& [name, expected] : hugging_face()) different += at::equal(folder.read(name), expected) ? 0 : 1;
  return different;
}

TEST(MetaFolder, JoinsTheMatricesOfHuggingFace) {
  for (const int64_t parts : {1, 2}) {
    for (const bool by_rows : {false, true}) {
      TempDir dir;
      write_folder(dir.path(), meta_parts(parts, by_rows));
      const MetaFolder folder(dir.path());
      const Tensors expected = hugging_face();
      EXPECT_EQ(folder.tensors().size(), expected.size());  // without rope.freqs
      for (const auto& [name, tensor] : expected) {
        EXPECT_TRUE(at::equal(folder.read(name), tensor)) << name << " of " << parts << " parts\n" << folder.read(name);
        const TensorBytes bytes = folder.bytes(name);
        ASSERT_EQ(bytes.span.size(), tensor.nbytes());
        EXPECT_EQ(std::memcmp(bytes.span.data(), tensor.const_data_ptr(), tensor.nbytes()), 0) << name;
        EXPECT_EQ(at::IntArrayRef(folder.info(name).shape), tensor.sizes());
        EXPECT_EQ(folder.info(name).bytes(), tensor.nbytes());
        folder.release(name);
      }
    }
  }
}

TEST(MetaFolder, MustDifferWhenPartsAreSwappedOrRowsStayWhereTheyAre) {
  TempDir dir;
  auto parts = meta_parts(2, false);
  std::swap(parts[0], parts[1]);
  write_folder(dir.path(), parts);
  EXPECT_EQ(count_different(MetaFolder(dir.path())), 9);  // everything but the norms

  parts = meta_parts(1, false);
  for (const auto& [meta, name] : {std::pair{"layers.0.attention.wq.weight", "model.layers.0.self_attn.q_proj.weight"},
                                   {"layers.0.attention.wk.weight", "model.layers.0.self_attn.k_proj.weight"}}) {
    parts[0][meta] = hugging_face().at(name);
  }
  write_folder(dir.path(), parts);
  fs::remove(dir / "consolidated.01.pth");
  EXPECT_EQ(count_different(MetaFolder(dir.path())), 2);
}

// Neither makes the matrices; a matrix of two parts begins with the first one's bytes.
TEST(MetaFolder, EveryPartCountsInTheFingerprintAndNoneIsJoinedForIt) {
  TempDir dir;
  auto parts = meta_parts(2, false);
  write_folder(dir.path(), parts);
  const std::string before = dense_fingerprint(Checkpoint(dir.path()));
  for (const TensorBytes& piece : MetaFolder(dir.path()).stored("model.layers.0.self_attn.q_proj.weight")) {
    EXPECT_FALSE(piece.owner.defined());
  }
  EXPECT_EQ(dense_fingerprint(Checkpoint(dir.path())), before);
  parts[1]["layers.0.feed_forward.w1.weight"] = parts[1]["layers.0.feed_forward.w1.weight"] + 1;
  write_folder(dir.path(), parts);
  EXPECT_NE(dense_fingerprint(Checkpoint(dir.path())), before);
}

nlohmann::json config_of(const nlohmann::json& settings) {
  TempDir dir;
  write_folder(dir.path(), meta_parts(1, false), settings);
  return read_model_config(dir.path());
}

nlohmann::json with(const char* key, const nlohmann::json& value) {
  nlohmann::json settings = params();
  settings[key] = value;
  return settings;
}

TEST(MetaFolder, SaysWhatConfigJsonWould) {
  const nlohmann::json config = config_of(params());
  EXPECT_EQ(config.at("model_type"), "llama");
  EXPECT_EQ(config.at("vocab_size"), kVocabulary);
  EXPECT_EQ(config.at("hidden_size"), kDim);
  EXPECT_EQ(config.at("intermediate_size"), kHidden);
  EXPECT_EQ(config.at("num_key_value_heads"), kKvHeads);
  EXPECT_EQ(config.at("rope_theta"), 10000);
  EXPECT_EQ(config.at("max_position_embeddings"), 4096);
  EXPECT_EQ(config.at("tie_word_embeddings"), false);
  EXPECT_FALSE(config.contains("rope_scaling"));
  EXPECT_EQ(config_of(with("norm_eps", 1e-6)).at("max_position_embeddings"), 2048);  // LLaMA 1
  EXPECT_EQ(config_of(with("sliding_window", 16)).at("model_type"), "mistral");
  EXPECT_EQ(config_of({{"model", params()}}), config);
  const nlohmann::json scaled = config_of(with("use_scaled_rope", true));
  EXPECT_EQ(scaled.at("rope_scaling").at("rope_type"), "llama3");
  EXPECT_EQ(scaled.at("rope_scaling").at("factor"), 8);
  EXPECT_EQ(scaled.at("max_position_embeddings"), 131072);
}

TEST(MetaFolder, WithoutAHeadTheEmbeddingIsTheHead) {
  TempDir dir;
  auto parts = meta_parts(1, false);
  parts[0].erase("output.weight");
  write_folder(dir.path(), parts);
  EXPECT_EQ(read_model_config(dir.path()).at("tie_word_embeddings"), true);
  EXPECT_EQ(model_config_name(dir.path()), (dir / "params.json").string());
}

std::string refusal(const std::function<void(std::vector<Tensors>&, nlohmann::json&)>& damage) {
  TempDir dir;
  auto parts = meta_parts(2, false);
  nlohmann::json settings = params();
  damage(parts, settings);
  write_folder(dir.path(), parts, settings);
  try {
    const ModelFiles files = open_model(dir.path());
  } catch (const DataError& error) {
    EXPECT_TRUE(std::string(error.what()).starts_with(dir.path().string())) << error.what();
    return error.what();
  }
  return "(taken)";
}

void expect_part(const std::string& text, const std::string& part) {
  EXPECT_NE(text.find(part), std::string::npos) << text << "\nexpected: " << part;
}

TEST(MetaFolder, DamageIsRefused) {
  const auto nothing = [](auto&, auto&) {};
  EXPECT_EQ(refusal(nothing), "(taken)");
  expect_part(refusal([](auto& parts, auto&) { parts.pop_back(); }), "is a part missing?");
  expect_part(refusal([](auto& parts, auto&) { parts[1].erase("norm.weight"); }), "there is no tensor 'norm.weight'");
  expect_part(refusal([](auto& parts, auto&) { parts[1]["extra"] = numbers({2}, 0); }),
              "'extra' is in this part, but not in");
  const auto everywhere = [](const char* name, at::IntArrayRef shape) {
    return refusal([&](auto& parts, auto&) {
      for (auto& part : parts) part[name] = numbers(shape, 0);
    });
  };
  expect_part(everywhere("extra", {2}), "'extra' is none of a LLaMA");
  expect_part(everywhere("layers.x.ffn_norm.weight", {2}), "is none of a LLaMA");
  expect_part(everywhere("output.weight", {5}), "expected 2 dimensions");
  expect_part(refusal([](auto& parts, auto&) { parts[1]["output.weight"] = numbers({4, kDim}, 0); }), "F32 [4, 8], in");
  expect_part(refusal([](auto&, auto& json) { json.erase("dim"); }), "key 'dim' is missing");
  expect_part(refusal([](auto&, auto& json) { json["dim"] = -8; }), "'dim' is -8");
  expect_part(refusal([](auto&, auto& json) { json["n_heads"] = 3; }), "not a multiple of n_heads 3");
  expect_part(refusal([](auto&, auto& json) { json["n_heads"] = 8; }), "head_dim 1 is odd");
  expect_part(refusal([](auto&, auto& json) { json["n_heads"] = 4; }), "expected 1 heads of 2");
  expect_part(refusal([](auto&, auto& json) { json["vocab_size"] = 11; }),
              "'vocab_size' is 11, but the embedding has 10 rows");
  expect_part(refusal([](auto&, auto& json) { json["hidden_dim"] = 11; }),
              "'hidden_dim' is 11, but feed_forward.w1 has 12 rows");
  expect_part(refusal([](auto&, auto& json) { json["norm_eps"] = "small"; }), "'norm_eps' is \"small\"");
  expect_part(refusal([](auto&, auto& json) { json["moe"] = {{"num_experts", 8}}; }), "key 'moe'");
  expect_part(refusal([](auto&, auto& json) { json = nlohmann::json::array(); }), "expected a JSON object");
}

TEST(MetaFolder, AGapInTheNumbersIsNoticed) {
  TempDir dir;
  write_folder(dir.path(), meta_parts(2, false));
  fs::rename(dir / "consolidated.01.pth", dir / "consolidated.02.pth");
  try {
    MetaFolder folder(dir.path());
    FAIL();
  } catch (const DataError& error) {
    expect_part(error.what(), "holds consolidated.02.pth, but not consolidated.01.pth");
  }
}

}  // namespace
}  // namespace qalora::io
