#include "qalora/model/adapter_base.h"

#include <c10/core/GradMode.h>

#include "qalora/core/error.h"
#include "qalora/model/merge_checkpoint.h"
#include "qalora/quant/merge.h"
#include "random_checkpoint.h"

namespace qalora::model {
namespace {

using test::expect_part;
using test::refusal;

const std::string kQ = "model.layers.0.self_attn.q_proj", kDown = "model.layers.0.mlp.down_proj";  // 64 and 192 inputs

class AdapterBase : public ::testing::Test {
 protected:
  void SetUp() override {
    nlohmann::json json = test::random_config_json();
    json["intermediate_size"] = 192;
    test::write_random_dense(dir_ / "dense", json);
    test::quantize_to(dir_ / "dense", dir_ / "base", 4, 32);
    config_ = read_config(dir_ / "base");
  }

  // An adapter of another project, with groups of this many inputs: its files carry no word of the base.
  io::AdapterFile foreign(io::Pooling pooling, int64_t group_size,
                          io::AdapterOrigin origin = io::AdapterOrigin::kPeft) {
    io::AdapterFile adapter = test::random_adapter(dir_ / "base", pooling, 0.05);
    adapter.config.origin = origin;
    adapter.config.group_size = group_size;
    adapter.config.base_fingerprint = adapter.config.base_state_fingerprint = "";
    const auto shapes = linear_shapes(config_);
    for (auto& [module, weights] : adapter.modules) {
      const int64_t columns = shapes.at(module)[1] / group_size;
      weights.a = tensor::RandomStream(1, module).normal_tensor({4, columns}, 0.3);
      weights.own_scaling = 0.5 + static_cast<double>(columns);  // its own in every width, as PEFT has it
    }
    return adapter;
  }

  at::Tensor logits(const io::AdapterFile& adapter) {
    Llama model = load_model(dir_ / "base", {});
    attach_adapter(model, adapter, {});
    const c10::NoGradGuard no_grad;
    text::Batch batch;
    batch.input_ids = tensor::RandomStream(3, "ids").uniform_tensor({1, 16}, 0, 400).to(at::kLong);
    batch.positions = at::arange(16, at::kLong).unsqueeze(0);
    batch.segments.push_back({0, 16});
    return model.logits(model.forward(batch));
  }

  double distance(const at::Tensor& a, const at::Tensor& b) { return (a - b).abs().max().item<double>(); }

  test::TempDir dir_;
  LlamaConfig config_;
};

TEST_F(AdapterBase, CoarserGroupsAreSpreadOverTheBasesAndMergeExactly) {
  for (io::Pooling pooling : {io::Pooling::kSum, io::Pooling::kMean}) {
    const io::AdapterFile coarse = foreign(pooling, 64);
    io::AdapterFile fine = coarse;
    fit_to_base(fine, config_, "here");
    EXPECT_EQ(fine.config.group_size, 32);
    EXPECT_EQ(fine.modules.at(kQ).a.size(1), 2);
    EXPECT_EQ(fine.modules.at(kDown).a.size(1), 6);
    // The same function: fp32 sums of 192 inputs in another order.
    EXPECT_LE(distance(logits(fine), logits(coarse)), 1e-4) << io::pooling_name(pooling);
    // And constant inside the groups of both, so that the merge is exact.
    const quant::PackedWeight weight =
        read_packed(io::Checkpoint(dir_ / "base"), kDown, 64, 192, *config_.quantization);
    const at::Tensor change =
        quant::offset_change("here", fine.config, fine.modules.at(kDown), 192, 32).view({64, 3, 2});
    EXPECT_LE(distance(change.select(2, 0), change.select(2, 1)),
              1e-6 * change.abs().max().item<double>());  // a product's own rounding
    EXPECT_EQ(quant::merge("here", weight, fine.config, fine.modules.at(kDown)).offsets.size(1), 6);
    // Must differ: columns repeated, the mean's factor left out.
    io::AdapterFile wrong = fine;
    wrong.config.pooling = pooling == io::Pooling::kSum ? io::Pooling::kMean : io::Pooling::kSum;
    EXPECT_GT(distance(logits(wrong), logits(coarse)), 1e-2);
  }
}

TEST_F(AdapterBase, FinerGroupsStayBesideTheModelAndCannotBeMerged) {
  io::AdapterFile fine = foreign(io::Pooling::kMean, 16);
  fit_to_base(fine, config_, "here");
  EXPECT_EQ(fine.config.group_size, 16);
  EXPECT_GT(distance(logits(fine), logits(foreign(io::Pooling::kMean, 32))), 1e-2);
  io::write_adapter(dir_.path(), fine);
  const std::string text = refusal<DataError>(
      [&] { check_mergeable(io::Checkpoint(dir_ / "base"), dir_.path(), fine, /*accept_unknown_base=*/true); });
  expect_part(text, "pools groups of 16 inputs");
  expect_part(text, "--adapter");
  // Our own adapters are made for a base: another group size is another base.
  io::AdapterFile own = foreign(io::Pooling::kMean, 64, io::AdapterOrigin::kOwn);
  fit_to_base(own, config_, "here");
  EXPECT_EQ(own.config.group_size, 64);
  expect_part(refusal<DataError>([&] { logits(own); }), "group_size 64");
  expect_part(refusal<DataError>([&] { check_mergeable(io::Checkpoint(dir_ / "base"), dir_.path(), own, true); }),
              "group_size 64");
}

TEST_F(AdapterBase, TheShapeOfATellsTheOfficialCodesAdaptersFromOrdinaryOnes) {
  const auto recognised = [&](io::AdapterFile adapter) {
    adapter.config.pooling = io::Pooling::kNone;
    adapter.config.group_size = 0;
    fit_to_base(adapter, config_, "here");
    return adapter.config;
  };
  const io::AdapterFile official = foreign(io::Pooling::kMean, 32, io::AdapterOrigin::kLora);
  EXPECT_EQ(recognised(official).origin, io::AdapterOrigin::kOfficial);
  EXPECT_EQ(recognised(official).pooling, io::Pooling::kMean);
  EXPECT_EQ(recognised(official).group_size, 32);
  EXPECT_EQ(recognised(foreign(io::Pooling::kMean, 64, io::AdapterOrigin::kLora)).group_size, 32);  // spread
  EXPECT_EQ(recognised(foreign(io::Pooling::kMean, 1, io::AdapterOrigin::kLora)).pooling, io::Pooling::kNone);
  io::AdapterFile mixed = official;  // one layer of another kind: nothing is guessed
  mixed.modules.at(kQ).a = at::ones({4, 64});
  EXPECT_EQ(recognised(mixed).pooling, io::Pooling::kNone);
  mixed.modules.at(kQ).a = at::ones({4, 1});
  EXPECT_EQ(recognised(mixed).pooling, io::Pooling::kNone);
  mixed.modules.at(kQ).a = at::ones({4, 3});
  EXPECT_EQ(recognised(mixed).pooling, io::Pooling::kNone);
  io::AdapterFile lost = official;  // a module that the base lacks is named later, not here
  lost.modules["model.layers.9.self_attn.q_proj"] = lost.modules.at(kQ);
  EXPECT_EQ(recognised(lost).pooling, io::Pooling::kNone);
}

}  // namespace
}  // namespace qalora::model
