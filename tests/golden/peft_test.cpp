// Adapters that PEFT wrote, against what PEFT computed with them (see the goldens' README): an ordinary LoRA beside a
// dense model, and its own QA-LoRA on a GPTQ model, which then merges exactly.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "golden/logits.h"
#include "qalora/core/error.h"
#include "qalora/io/checkpoint.h"
#include "qalora/model/load.h"
#include "support/support.h"

namespace qalora::model {
namespace {

class PeftGolden : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    REQUIRE_SHARED(std::string("goldens/peft/") + GetParam());
    folder_ = test::shared_dir() / "goldens/peft" / GetParam();
    about_ = io::read_json_file(folder_ / "expected.json");
    base_ = test::shared_dir() / "goldens" / about_.at("base").get<std::string>();
    expected_ = std::make_unique<io::SafetensorsFile>(folder_ / "expected.safetensors");
    ids_ = expected_->read("input_ids").to(at::kLong);
  }

  // With `scale` times the scaling that the adapter's files say.
  void load(double scale) {
    model_ = load_model_with_adapter(base_, folder_, {});
    for (const auto& adapter : adapters()) {
      adapter->scaling *= scale;
      adapter->a.requires_grad_(true);
      adapter->b.requires_grad_(true);
    }
  }

  std::vector<std::shared_ptr<Adapter>> adapters() {
    std::vector<std::shared_ptr<Adapter>> result;
    for (Linear* linear : model_.linears()) {
      if (linear->adapter) result.push_back(linear->adapter);
    }
    return result;
  }

  // Mean loss of the counted labels; each is predicted by the position before it.
  double backward() {
    const at::Tensor labels = expected_->read("labels").to(at::kLong);
    const at::Tensor targets = at::full_like(labels, text::kIgnore);
    targets.slice(1, 0, labels.size(1) - 1).copy_(labels.slice(1, 1));
    const at::Tensor loss = model_.loss_sum(model_.forward(batch_of(ids_)), targets.reshape({-1})) /
                            targets.ne(text::kIgnore).sum().item<double>();
    loss.backward();
    return loss.item<double>();
  }

  // Largest distance of a gradient from PEFT's, relative to the largest entry of its tensor.
  double gradient_distance() {
    double worst = 0;
    for (const Linear* linear : model_.linears()) {
      if (!linear->adapter) continue;
      for (const auto& [part, value] : {std::pair{"lora_A", linear->adapter->a}, {"lora_B", linear->adapter->b}}) {
        const at::Tensor golden =
            expected_->read(message("gradient.base_model.model.", linear->module(), ".", part, ".weight"));
        worst = std::max(worst, distance(value.grad(), golden) / golden.abs().max().item<double>());
      }
    }
    return worst;
  }

  fs::path folder_, base_;
  nlohmann::json about_;
  std::unique_ptr<io::SafetensorsFile> expected_;
  at::Tensor ids_;
  Llama model_;
};

TEST_P(PeftGolden, LogitsLossAndGradientsEqualPefts) {
  const at::Tensor logits = expected_->read("logits");
  const double loss = expected_->read("loss").item<double>();
  const size_t modules = std::string(GetParam()) == "qalora_rslora_some" ? 6 : 14;
  // The tolerances of the goldens' README.
  load(1);
  EXPECT_EQ(adapters().size(), modules);
  EXPECT_LE(distance(logits_of(model_, ids_), logits), 2e-4);
  EXPECT_NEAR(backward(), loss, 1e-5);
  EXPECT_LE(gradient_distance(), 1e-4);
  // Must differ: no adapter, and one scaled by a hundredth more.
  load(0);
  EXPECT_LE(distance(logits_of(model_, ids_), expected_->read("logits_without_adapter")), 2e-4);
  EXPECT_GT(distance(logits_of(model_, ids_), logits), 1);
  load(1.01);
  EXPECT_GT(distance(logits_of(model_, ids_), logits), 2e-3);
  EXPECT_GT(std::abs(backward() - loss), 1e-4);
  EXPECT_GT(gradient_distance(), 1e-3);
}

// How far another convention would be is in the golden's own file, measured by the package that made it.
TEST_P(PeftGolden, TheOtherConventionsAreAsFarOffAsPeftFound) {
  if (std::string(GetParam()) == "lora") GTEST_SKIP() << "an ordinary LoRA pools nothing";
  const at::Tensor logits = expected_->read("logits");
  const nlohmann::json& distances = about_.at("wrong_pooling_distance_max_abs");
  for (const auto& [name, pooling] :
       {std::pair{"sum over the group", io::Pooling::kSum}, {"mean over the group", io::Pooling::kMean}}) {
    load(1);
    const double scaling = io::read_adapter(folder_).config.scaling;  // alpha / rank, or over its root
    for (const auto& adapter : adapters()) adapter->pooling = pooling, adapter->scaling = scaling;
    const double known = distances.at(name);
    EXPECT_NEAR(distance(logits_of(model_, ids_), logits), known, 0.01 * known) << name;
  }
}

TEST_P(PeftGolden, MergesExactly) {
  const test::TempDir dir;
  const std::string out = (dir / "merged").string();
  const auto merge = test::run_qalora(
      {"merge", "--model", base_, "--adapter", folder_, "--out", out, "--accept-unknown-base", "--json"});
  if (std::string(GetParam()) == "lora") {
    EXPECT_EQ(merge.exit_code, 3);
    EXPECT_NE(merge.err.find("an ordinary LoRA"), std::string::npos) << merge.err;
    return;
  }
  ASSERT_EQ(merge.exit_code, 0) << merge.err;
  const nlohmann::json report = nlohmann::json::parse(merge.out);
  EXPECT_TRUE(report.at("verified"));
  EXPECT_EQ(report.at("code_bytes_changed"), 0);
  EXPECT_EQ(report.at("scale_bytes_changed"), 0);
  model_ = load_model(out, {});
  EXPECT_LE(distance(logits_of(model_, ids_), expected_->read("logits")), 2e-4);
  // Without the word that the base is the right one nothing is merged.
  const auto unknown =
      test::run_qalora({"merge", "--model", base_, "--adapter", folder_, "--out", (dir / "other").string()});
  EXPECT_EQ(unknown.exit_code, 3);
  EXPECT_NE(unknown.err.find("--accept-unknown-base"), std::string::npos) << unknown.err;
}

// The same A and B under a configuration that does not say use_qalora: the official code's, whose mean has no other
// factor.
TEST_P(PeftGolden, OfTheOfficialCodeWouldScaleByTheMeanAlone) {
  if (std::string(GetParam()) == "lora") GTEST_SKIP() << "its A has a column for every input";
  const test::TempDir dir;
  nlohmann::json config = io::read_json_file(folder_ / "adapter_config.json");
  config["use_qalora"] = false;
  io::write_json_file(dir / "adapter_config.json", config);
  fs::copy_file(folder_ / "adapter_model.safetensors", dir / "adapter_model.safetensors");
  model_ = load_model_with_adapter(base_, dir.path(), {});
  const double known = about_.at("wrong_pooling_distance_max_abs").at("mean over the group");
  EXPECT_NEAR(distance(logits_of(model_, ids_), expected_->read("logits")), known, 0.01 * known);
}

INSTANTIATE_TEST_SUITE_P(Peft, PeftGolden, ::testing::Values("lora", "qalora", "qalora_rslora_some"));

}  // namespace
}  // namespace qalora::model
