// A tiny Qwen3 model that Transformers made (tests/data/qwen3/make.py): logits and gradients against its own, in double
// precision.
#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <gtest/gtest.h>

#include "qalora/core/error.h"
#include "qalora/io/json_file.h"
#include "qalora/io/safetensors.h"
#include "qalora/model/load.h"
#include "support/support.h"

namespace qalora::model {
namespace {

constexpr double kLogits = 1e-4;     // fp32 sums of at most 96 products, two layers; the largest logit is about 7
constexpr double kGradients = 1e-4;  // relative to the largest entry of each

const fs::path& folder() {
  static const fs::path path = test::source_dir() / "tests/data/qwen3";
  return path;
}

text::Batch batch_of(const at::Tensor& ids) {
  text::Batch batch;
  batch.input_ids = ids;
  batch.targets = at::full_like(ids, text::kIgnore);
  batch.targets.slice(1, 0, ids.size(1) - 1).copy_(ids.slice(1, 1));
  batch.positions = at::arange(ids.size(1), at::kLong).unsqueeze(0).expand_as(ids).contiguous();
  for (int64_t row = 0; row < ids.size(0); ++row)
    batch.segments.push_back({row * ids.size(1), (row + 1) * ids.size(1)});
  return batch;
}

double distance(const at::Tensor& a, const at::Tensor& b) {
  return (a.to(at::kDouble) - b.to(at::kDouble)).abs().max().item<double>();
}

class Qwen3 : public ::testing::Test {
 protected:
  const io::SafetensorsFile expected_{folder() / "expected.safetensors"};
  const at::Tensor ids_ = expected_.read("input_ids").to(at::kLong);
  const at::Tensor logits_ = expected_.read("logits");

  double distance_of(Llama& model) const {
    const c10::NoGradGuard no_grad;
    return distance(model.logits(model.forward(batch_of(ids_))).reshape_as(logits_), logits_);
  }
};

TEST_F(Qwen3, LogitsEqualTransformers) {
  Llama model = load_model(folder(), {});
  EXPECT_EQ(model.config.head_dim, 16);
  EXPECT_FALSE(model.config.qkv_bias);
  EXPECT_LE(distance_of(model), kLogits);
  for (Layer& layer : model.layers) layer.q_norm = at::Tensor();  // must differ: one of the two norms left out
  EXPECT_GT(distance_of(model), 100 * kLogits);
}

TEST_F(Qwen3, TheNormComesBeforeTheRotationAndOverOneHead) {
  Llama model = load_model(folder(), {});
  for (Layer& layer : model.layers) layer.k_norm = layer.k_norm.roll(8);  // must differ: the weight of another pair
  EXPECT_GT(distance_of(model), 100 * kLogits);
}

TEST_F(Qwen3, CachedForwardEqualsTheWholeForward) {
  Llama model = load_model(folder(), {});
  const c10::NoGradGuard no_grad;
  KvCache cache;
  std::vector<at::Tensor> parts;
  for (const auto& [begin, end] : {std::pair<int64_t, int64_t>{0, 7}, {7, 8}, {8, 12}}) {
    parts.push_back(model.logits(model.forward_cached(ids_[0].slice(0, begin, end), cache)));
  }
  EXPECT_LE(distance(at::cat(parts), logits_[0]), kLogits);
}

TEST_F(Qwen3, GradientsEqualTransformers) {
  for (const Recompute recompute : {Recompute::kNothing, Recompute::kMlp, Recompute::kLayer}) {
    Llama model = load_model(folder(), {.trainable = true});
    const text::Batch batch = batch_of(ids_);
    const at::Tensor loss =
        model.loss_sum(model.forward(batch, {.dropout = {}, .recompute = recompute}), batch.targets.reshape({-1}));
    EXPECT_NEAR(loss.item<double>(), expected_.read("loss").item<double>(), 1e-3);  // the sum of 22 losses of about 10
    loss.backward();
    const std::map<std::string, at::Tensor> weights = named_weights(model);
    for (const char* name :
         {"self_attn.q_norm.weight", "self_attn.k_norm.weight", "self_attn.q_proj.weight", "input_layernorm.weight"}) {
      const at::Tensor wanted = expected_.read(std::string("gradient.") + name),
                       found = weights.at(layer_prefix(0) + name).grad();
      ASSERT_TRUE(found.defined()) << name;
      EXPECT_LE(distance(found, wanted) / wanted.abs().max().item<double>(), kGradients) << name;
    }
  }
}

TEST_F(Qwen3, ItsTensorsAndParametersAreCounted) {
  const LlamaConfig config = read_config(folder());
  int64_t count = 0;
  for (const ExpectedTensor& tensor : expected_tensors(config)) {
    int64_t elements = 1;
    for (const int64_t size : tensor.shape) elements *= size;
    count += elements;
  }
  EXPECT_EQ(config.parameters(), count);
  Llama fresh = new_model(config, 1);
  EXPECT_TRUE(at::equal(fresh.layers[1].k_norm, at::ones({16})));
  const test::TempDir dir;
  save_dense(fresh, dir.path(), io::read_json_file(folder() / "config.json"), at::kFloat);
  Llama again = load_model(dir.path(), {});
  EXPECT_TRUE(at::equal(again.layers[0].q_norm, fresh.layers[0].q_norm));
}

TEST_F(Qwen3, WithoutHeadDimItIs128AndANormIsNotQwen2s) {
  nlohmann::json json = io::read_json_file(folder() / "config.json");
  json.erase("head_dim");
  EXPECT_EQ(parse_config(json, "config.json").head_dim, 128);
  json = io::read_json_file(folder() / "config.json");
  json["model_type"] = "qwen2";
  json["architectures"] = {"Qwen2ForCausalLM"};
  const io::Checkpoint checkpoint(folder());
  EXPECT_THROW(check_tensors(checkpoint, parse_config(json, "config.json")), DataError);
}

}  // namespace
}  // namespace qalora::model
