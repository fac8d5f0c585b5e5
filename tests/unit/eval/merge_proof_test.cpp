#include "qalora/eval/merge_proof.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <limits>

#include "qalora/core/error.h"
#include "qalora/model/merge_checkpoint.h"
#include "unit/model/random_checkpoint.h"
#include "unit/text/tiny_tokenizer.h"

namespace qalora::eval {
namespace {

using test::TempDir;

// A merged checkpoint whose offsets are `offsets(base, merged)` instead, written beside the right one.
using Change = std::function<at::Tensor(const at::Tensor& base, const at::Tensor& merged)>;

void write_changed(const fs::path& base, const fs::path& merged, const fs::path& out, const Change& change) {
  const io::Checkpoint before(base), after(merged);
  std::vector<io::PlannedTensor> plan;
  for (const auto& name : after.names()) plan.push_back({name, after.info(name).dtype, after.info(name).shape});
  fs::create_directories(out);
  io::CheckpointWriter writer(out, plan, {});
  for (const auto& name : after.names()) {
    if (name.ends_with(".biases")) {
      writer.write(name, change(before.read(name), after.read(name)).to(at::kFloat));
    } else {
      writer.write(name, after.bytes(name).span);
    }
  }
  writer.finish();
  fs::copy_file(merged / "config.json", out / "config.json");
}

struct ProofCase {
  int bits;
  int64_t group_size;
  io::Pooling pooling;
  double deviation;  // of B: how much was learnt
};

void PrintTo(const ProofCase& c, std::ostream* out) {
  *out << c.bits << " bits, groups of " << c.group_size << ", " << io::pooling_name(c.pooling) << " pooling, B "
       << c.deviation;
}

class MergeProofTest : public ::testing::TestWithParam<ProofCase> {};

TEST_P(MergeProofTest, TheMergePassesAndEverythingElseIsFarOutside) {
  const ProofCase c = GetParam();
  TempDir dir;
  test::write_random_dense(dir / "dense");
  test::quantize_to(dir / "dense", dir / "base", c.bits, c.group_size);
  const io::AdapterFile adapter = test::random_adapter(dir / "base", c.pooling, c.deviation);
  test::write_adapter_to(dir / "adapter", adapter);
  fs::create_directories(dir / "merged");
  model::merge_checkpoint(io::Checkpoint(dir / "base"), dir / "adapter", adapter, dir / "merged");
  const ProofTokens tokens = proof_tokens(dir / "base", model::read_config(dir / "base"), "");
  EXPECT_EQ(tokens.source, "pseudo-random ids");

  const io::Checkpoint base(dir / "base");
  const OffsetCheck offsets = check_offsets(base, adapter, io::Checkpoint(dir / "merged"));
  EXPECT_TRUE(offsets.exact());
  EXPECT_GT(offsets.worst, 0.9);  // of many roundings one is nearly as large as roundings can be
  EXPECT_GT(offsets.offsets, 1000);

  const MergeProof right = prove_merge(dir / "base", adapter, dir / "merged", tokens);
  EXPECT_TRUE(right.decides());
  RecordProperty("difference_over_tolerance", std::to_string(right.max_logit_difference / right.tolerance));
  EXPECT_TRUE(right.verified());
  EXPECT_LE(5 * right.max_logit_difference, right.tolerance);
  EXPECT_GT(right.max_logit_difference, 0);
  EXPECT_GT(right.effect, 5 * right.tolerance);
  EXPECT_EQ(right.tokens, 256);

  int count = 0;
  const auto wrong = [&](const char* what, const Change& change) {
    const fs::path out = dir / ("wrong" + std::to_string(count++));
    write_changed(dir / "base", dir / "merged", out, change);
    const MergeProof proof = prove_merge(dir / "base", adapter, out, tokens);
    EXPECT_FALSE(proof.verified()) << what;
    EXPECT_GT(check_offsets(base, adapter, io::Checkpoint(out)).worst, 10) << what;
    EXPECT_GT(proof.max_logit_difference, 5 * proof.tolerance) << what;
    RecordProperty(what, std::to_string(proof.max_logit_difference / proof.tolerance));
  };
  wrong("wrong sign", [](const at::Tensor& base, const at::Tensor& merged) { return 2 * base - merged; });
  wrong("not merged", [](const at::Tensor& base, const at::Tensor&) { return base; });
  wrong("factor off by the group size", [&](const at::Tensor& base, const at::Tensor& merged) {
    return base + (merged - base) / static_cast<double>(c.group_size == quant::kWholeRow ? 64 : c.group_size);
  });
  wrong("factor off by five per cent",
        [](const at::Tensor& base, const at::Tensor& merged) { return base + (merged - base) * 1.05; });
  wrong("offsets in bf16", [](const at::Tensor&, const at::Tensor& merged) { return merged.to(at::kBFloat16); });
  wrong("offsets in f16", [](const at::Tensor&, const at::Tensor& merged) { return merged.to(at::kHalf); });
}

INSTANTIATE_TEST_SUITE_P(All, MergeProofTest,
                         ::testing::Values(ProofCase{4, 32, io::Pooling::kSum, 0.02},
                                           ProofCase{4, 32, io::Pooling::kSum, 0.001},
                                           ProofCase{3, 64, io::Pooling::kMean, 0.2},
                                           ProofCase{2, 32, io::Pooling::kMean, 0.05},
                                           ProofCase{4, quant::kWholeRow, io::Pooling::kSum, 0.02}));

TEST(MergeProof, AnAdapterOnOneLayerPassesAndAMissingOneDoesNot) {
  TempDir dir;
  test::write_random_dense(dir / "dense");
  test::quantize_to(dir / "dense", dir / "base", 4, 32);
  io::AdapterFile adapter = test::random_adapter(dir / "base", io::Pooling::kSum, 0.02);
  std::erase_if(adapter.modules, [](const auto& entry) { return entry.first != "model.layers.1.self_attn.q_proj"; });
  test::write_adapter_to(dir / "adapter", adapter);
  fs::create_directories(dir / "merged");
  model::merge_checkpoint(io::Checkpoint(dir / "base"), dir / "adapter", adapter, dir / "merged");
  const ProofTokens tokens = proof_tokens(dir / "base", model::read_config(dir / "base"), "");
  const MergeProof right = prove_merge(dir / "base", adapter, dir / "merged", tokens);
  EXPECT_LE(5 * right.max_logit_difference, right.tolerance);
  EXPECT_FALSE(prove_merge(dir / "base", adapter, dir / "base", tokens).verified());
}

// Where logits cannot tell, offsets can: an adapter that was hardly trained, one whose parts cancel, one that is very
// large.
class BeyondLogits : public ::testing::Test {
 protected:
  BeyondLogits() {
    test::write_random_dense(dir_ / "dense");
    test::quantize_to(dir_ / "dense", dir_ / "base", 4, 32);
  }

  OffsetCheck merge_and_check(const io::AdapterFile& adapter) {
    test::write_adapter_to(dir_ / "adapter", adapter);
    fs::remove_all(dir_ / "merged");
    fs::create_directories(dir_ / "merged");
    model::merge_checkpoint(io::Checkpoint(dir_ / "base"), dir_ / "adapter", adapter, dir_ / "merged");
    return check_offsets(io::Checkpoint(dir_ / "base"), adapter, io::Checkpoint(dir_ / "merged"));
  }

  MergeProof prove(const io::AdapterFile& adapter, const fs::path& merged) {
    return prove_merge(dir_ / "base", adapter, merged,
                       proof_tokens(dir_ / "base", model::read_config(dir_ / "base"), ""));
  }

  // The error of a merge that left the adapter out.
  double error_of_none(const io::AdapterFile& adapter) const {
    return check_offsets(io::Checkpoint(dir_ / "base"), adapter, io::Checkpoint(dir_ / "base")).worst;
  }

  test::TempDir dir_;
};

TEST_F(BeyondLogits, AnAdapterThatDoesLessThanRounding) {
  const io::AdapterFile adapter = test::random_adapter(dir_ / "base", io::Pooling::kSum, 3e-8);
  EXPECT_TRUE(merge_and_check(adapter).exact());
  EXPECT_GT(error_of_none(adapter), 3);
  const MergeProof proof = prove(adapter, dir_ / "base");
  EXPECT_TRUE(proof.verified());  // although nothing was merged
  EXPECT_FALSE(proof.decides());
}

TEST_F(BeyondLogits, AnAdapterWhosePartsCancel) {
  io::AdapterFile adapter = test::random_adapter(dir_ / "base", io::Pooling::kMean, 0.02);
  for (auto& [module, weights] : adapter.modules) {  // a second pair that is the negative of a first, both large
    const at::Tensor large = at::full_like(weights.a.narrow(0, 0, 1), 3e4);
    weights.a = at::cat({weights.a, large, large});
    weights.b = at::cat({weights.b, at::ones({weights.b.size(0), 1}), -at::ones({weights.b.size(0), 1})}, 1);
  }
  adapter.config.rank += 2;
  adapter.config.alpha = adapter.config.scaling * static_cast<double>(adapter.config.rank);
  EXPECT_TRUE(merge_and_check(adapter).exact());
  EXPECT_GT(error_of_none(adapter), 1e4);
  io::AdapterFile other = adapter;
  for (auto& [module, weights] : other.modules) weights.b = weights.b * 1.001;
  EXPECT_GT(check_offsets(io::Checkpoint(dir_ / "base"), other, io::Checkpoint(dir_ / "merged")).worst, 10);
}

TEST_F(BeyondLogits, AVeryLargeAdapterIsVerified) {
  for (uint64_t seed : {11, 12, 13}) {
    const io::AdapterFile adapter = test::random_adapter(dir_ / "base", io::Pooling::kSum, 2000, seed);
    EXPECT_TRUE(merge_and_check(adapter).exact());
    EXPECT_TRUE(prove(adapter, dir_ / "merged").verified()) << seed;
    EXPECT_FALSE(prove(adapter, dir_ / "base").verified()) << seed;
  }
}

TEST_F(BeyondLogits, OffsetsOfOtherModulesMustStay) {
  io::AdapterFile adapter = test::random_adapter(dir_ / "base", io::Pooling::kSum, 0.02);
  const std::string module = "model.layers.1.self_attn.q_proj";
  std::erase_if(adapter.modules, [&](const auto& entry) { return entry.first != module; });
  EXPECT_TRUE(merge_and_check(adapter).exact());
  const std::string other = "model.layers.0.mlp.up_proj.biases";
  at::Tensor offsets = io::Checkpoint(dir_ / "merged").read(other);
  offsets[0][0] *= 1 + 1e-6;
  test::rewrite(dir_ / "merged", other, offsets);
  const OffsetCheck check = check_offsets(io::Checkpoint(dir_ / "base"), adapter, io::Checkpoint(dir_ / "merged"));
  EXPECT_FALSE(check.exact());
  EXPECT_EQ(check.worst_name, other);
}

TEST(MergeProof, AnUntrainedAdapterChangesNothing) {
  TempDir dir;
  test::write_random_dense(dir / "dense");
  test::quantize_to(dir / "dense", dir / "base", 4, 32);
  const io::AdapterFile adapter = test::random_adapter(dir / "base", io::Pooling::kSum, 0);
  const ProofTokens tokens = proof_tokens(dir / "base", model::read_config(dir / "base"), "");
  const MergeProof proof = prove_merge(dir / "base", adapter, dir / "base", tokens);
  EXPECT_EQ(proof.effect, 0);
  EXPECT_TRUE(proof.verified());
}

TEST(MergeProof, ADifferenceThatIsNoNumberIsNotVerified) {
  MergeProof proof;
  proof.max_logit_difference = std::numeric_limits<double>::quiet_NaN();
  proof.tolerance = 1;
  EXPECT_FALSE(proof.verified());
}

TEST(ProofTokens, ComeFromTheTrainingDataWhereItCanBeRead) {
  TempDir dir;
  test::write_random_dense(dir / "dense");
  const model::LlamaConfig config = model::read_config(dir / "dense");
  test::write_file(dir / "tokens.jsonl",
                   "{\"input_ids\": [1, 2, 3]}\n{\"input_ids\": [1, 2, 399]}\n{\"input_ids\": [1, 2, 400]}\n");
  const ProofTokens ids = proof_tokens(dir / "dense", config, (dir / "tokens.jsonl").string());
  EXPECT_EQ(ids.sequences,
            (std::vector<std::vector<int64_t>>{{1, 2, 3}, {1, 2, 399}}));  // 400 is outside the vocabulary
  EXPECT_NE(ids.source.find("2 records of"), std::string::npos);

  const fs::path alpaca = dir / "alpaca.json";
  test::write_file(alpaca, R"([{"instruction": "say the", "input": "", "output": "all"}])");
  EXPECT_EQ(proof_tokens(dir / "dense", config, alpaca.string()).source, "pseudo-random ids");  // no tokenizer yet
  test::write_tiny_tokenizer(dir / "dense");
  const ProofTokens text = proof_tokens(dir / "dense", config, alpaca.string());
  ASSERT_EQ(text.sequences.size(), 1u);
  EXPECT_GT(text.sequences[0].size(), 20u);
  EXPECT_EQ(proof_tokens(dir / "dense", config, (dir / "absent.json").string()).source, "built-in text");
  test::write_file(dir / "damaged.json", "[{]");
  EXPECT_EQ(proof_tokens(dir / "dense", config, (dir / "damaged.json").string()).source, "built-in text");
  // A file that was asked for is used or is an error.
  EXPECT_EQ(proof_tokens_of(dir / "dense", config, alpaca.string()).source, text.source);
  EXPECT_THROW(proof_tokens_of(dir / "dense", config, (dir / "damaged.json").string()), DataError);
  EXPECT_THROW(proof_tokens_of(dir / "dense", config, (dir / "absent.json").string()), UserError);
}

}  // namespace
}  // namespace qalora::eval
