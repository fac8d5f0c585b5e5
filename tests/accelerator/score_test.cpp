// The miniature's exam, and the proof of a merge, on an accelerator: the CPU's answers.
#include <gtest/gtest.h>

#include <algorithm>

#include "accelerator/tiny_model.h"
#include "qalora/core/log.h"
#include "qalora/eval/mmlu.h"
#include "qalora/eval/scorer.h"
#include "qalora/eval/verified_merge.h"
#include "qalora/model/quantize_checkpoint.h"
#include "support/support.h"
#include "unit/model/random_checkpoint.h"

namespace qalora::test {
namespace {

class AcceleratorScores : public ::testing::Test {
 protected:
  void SetUp() override { log::configure({.level = log::Level::kQuiet, .color = log::Color::kNever, .file = ""}); }

  eval::MmluResult exam(at::ScalarType compute, c10::Device device) const {
    model::LoadOptions options;
    options.compute = compute;
    options.device = device;
    model::Llama model = model::load_model(dir_ / "base", options);
    const text::Tokenizer tokenizer(dir_ / "base");
    const eval::MmluSource source{
        .data = source_dir() / "tests/data/miniature/mmlu", .protocol = eval::Protocol::kQlora, .shots = 1, .limit = 6};
    return eval::run_mmlu(model, tokenizer, eval::read_mmlu(source), source.protocol, 400);
  }

  TempDir dir_;
};

TEST_F(AcceleratorScores, TheExamsAnswersAreTheCpusButForTies) {
  const io::Checkpoint dense(source_dir() / "models/miniature");
  model::quantize_checkpoint(dense, model::plan_quantization(dense, {.bits = 2, .group_size = 32}), dir_ / "base",
                             false);
  const eval::MmluResult expected = exam(at::kFloat, c10::kCPU);
  const eval::MmluResult got = exam(at::kBFloat16, test_device());
  ASSERT_EQ(got.answers.size(), expected.answers.size());
  ASSERT_EQ(got.answers.size(), 48U);
  // Four layers of about seven roundings to 8 bits each, on logits of up to about 20.
  const double tie = 20 * 4 * 7 * std::ldexp(1.0, -9) / 4;
  double farthest = 0;
  int same = 0;
  for (size_t i = 0; i < got.answers.size(); ++i) {
    const auto &a = got.answers[i], &b = expected.answers[i];
    for (size_t letter = 0; letter < 4; ++letter)
      farthest = std::max(farthest, std::abs(a.scores[letter] - b.scores[letter]));
    same += a.prediction == b.prediction;
    std::array<double, 4> sorted = b.scores;
    std::sort(sorted.begin(), sorted.end());
    if (sorted[3] - sorted[2] > 2 * tie) {
      EXPECT_EQ(a.prediction, b.prediction) << "question " << i;
    }
  }
  EXPECT_LE(farthest, tie);
  EXPECT_GE(same, 46);
  // Must differ: the answers are not all one letter.
  EXPECT_TRUE(std::any_of(got.answers.begin(), got.answers.end(),
                          [&](const auto& answer) { return answer.prediction != got.answers[0].prediction; }));
}

TEST_F(AcceleratorScores, AMergeIsProvedOnTheDevice) {
  write_random_dense(dir_ / "dense");
  quantize_to(dir_ / "dense", dir_ / "base", 4, 32);
  const io::AdapterFile adapter = random_adapter(dir_ / "base", io::Pooling::kSum, 0.05);
  write_adapter_to(dir_ / "adapter", adapter);
  const io::Checkpoint base(dir_ / "base");
  const eval::ProofTokens tokens = eval::proof_tokens(dir_ / "base", model::read_config(dir_ / "base"), "");
  const eval::MergeReport report =
      eval::merge_verified(base, dir_ / "adapter", adapter, tokens, dir_ / "merged", /*replace=*/false, test_device());
  EXPECT_TRUE(report.logits.verified());
  EXPECT_TRUE(report.logits.decides());
  EXPECT_GT(report.logits.max_logit_difference, 0);
  EXPECT_FALSE(eval::prove_merge(dir_ / "base", adapter, dir_ / "base", tokens, test_device())
                   .verified());  // nothing was merged
}

}  // namespace
}  // namespace qalora::test
