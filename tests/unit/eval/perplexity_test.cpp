#include "qalora/eval/perplexity.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "qalora/core/error.h"
#include "qalora/eval/scorer.h"
#include "qalora/io/safetensors.h"
#include "support/support.h"
#include "unit/eval/tiny.h"

namespace qalora::eval {
namespace {

using test::random_ids;
using test::TempDir;
using test::tiny_config;
using test::write_file;

TokenBlocks blocks_of(std::vector<std::vector<int64_t>> rows) {
  TokenBlocks out;
  out.blocks = std::move(rows);
  out.block_tokens = static_cast<int64_t>(out.blocks[0].size());
  return out;
}

TEST(Perplexity, EqualsAPlainLoopInDouble) {
  model::Llama model = model::new_model(tiny_config(), 1);
  const TokenBlocks blocks = blocks_of({random_ids(1, 40), random_ids(2, 40), random_ids(3, 7)});
  const auto result = run_perplexity(model, blocks, 64);
  at::NoGradGuard no_grad;
  double sum = 0;
  int64_t tokens = 0;
  for (const auto& ids : blocks.blocks) {
    model::KvCache cache;
    const at::Tensor logits =
        model.logits(model.forward_cached(at::tensor(at::IntArrayRef(ids), at::kLong), cache)).to(at::kDouble);
    for (size_t t = 0; t + 1 < ids.size(); ++t, ++tokens) {
      const double* row = logits.data_ptr<double>() + static_cast<int64_t>(t) * logits.size(1);
      double total = 0;
      for (int64_t v = 0; v < logits.size(1); ++v) total += std::exp(row[v]);
      sum += std::log(total) - row[ids[t + 1]];
    }
  }
  EXPECT_EQ(result.tokens, tokens);
  EXPECT_EQ(result.tokens, 39 + 39 + 6);
  // f32 logits of size 10 or so through two layers: 1e-5 each, less in the mean.
  EXPECT_NEAR(result.nll, sum / static_cast<double>(tokens), 1e-5);
}

TEST(Perplexity, IsTheSameInAnyBatchAndMovesWithTheModel) {
  model::Llama model = model::new_model(tiny_config(), 1), other = model::new_model(tiny_config(), 2);
  std::vector<std::vector<int64_t>> rows;
  for (uint64_t i = 0; i < 9; ++i) rows.push_back(random_ids(i, 33));
  const TokenBlocks blocks = blocks_of(rows);
  const double nll = run_perplexity(model, blocks, 1).nll;
  EXPECT_EQ(nll, run_perplexity(model, blocks, 100000).nll);
  EXPECT_NE(nll, run_perplexity(other, blocks, 100000).nll);
}

TEST(Perplexity, BlockLength) {
  EXPECT_EQ(block_length(0, tiny_config(128)), 128);
  EXPECT_EQ(block_length(0, tiny_config(4096)), 2048);
  EXPECT_EQ(block_length(50, tiny_config(128)), 50);
  EXPECT_THROW(block_length(129, tiny_config(128)), UserError);
  EXPECT_THROW(block_length(1, tiny_config(128)), UserError);
}

TEST(TokenIds, OneListOrSeveral) {
  TempDir dir;
  write_file(dir / "one.json", "[5, 6, 7]");
  write_file(dir / "two.json", "[[5, 6, 7], [1, 2, 96]]");
  EXPECT_EQ(read_token_ids(dir / "one.json", tiny_config()).blocks, (std::vector<std::vector<int64_t>>{{5, 6, 7}}));
  EXPECT_EQ(read_token_ids(dir / "two.json", tiny_config()).blocks.size(), 2u);
  EXPECT_EQ(read_token_ids(dir / "two.json", tiny_config(), 1).blocks.size(), 1u);
  EXPECT_EQ(read_token_ids(dir / "two.json", tiny_config(), 9).documents, 2);
  const std::pair<const char*, const char*> bad[] = {
      {"[[1, 2], [3, 97]]", "row 1, position 1: expected a token id from 0 to 96, got 97"},
      {"[1, -2]", "got -2"},
      {"[1, 2.0]", "position 1"},
      {"[1, 18446744073709551615]", "position 1"},
      {"[[1, 2], [3, 4, 5]]", "row 1 has 3"},
      {"[[1, 2], 3]", "row 1 is number"},
      {"[]", "an empty list"},
      {"{}", "got object"},
      {"[1]", "row 0 has 1 tokens"},
  };
  for (const auto& [text, words] : bad) {
    write_file(dir / "bad.json", text);
    try {
      read_token_ids(dir / "bad.json", tiny_config());
      FAIL() << text;
    } catch (const DataError& error) {
      EXPECT_NE(std::string(error.what()).find("bad.json"), std::string::npos) << error.what();
      EXPECT_NE(std::string(error.what()).find(words), std::string::npos) << error.what();
    }
  }
}

TEST(SaveLogits, WritesWhatTheModelComputes) {
  TempDir dir;
  model::Llama model = model::new_model(tiny_config(), 1);
  const TokenBlocks rows = blocks_of({random_ids(1, 21), random_ids(2, 21)});
  const auto result = save_logits(model, rows, 16, dir / "out.safetensors");
  EXPECT_EQ(result.tokens, 40);
  const at::Tensor logits = io::SafetensorsFile(dir / "out.safetensors").read("logits");
  EXPECT_EQ(logits.sizes(), (at::IntArrayRef{2, 21, 97}));
  at::NoGradGuard no_grad;
  for (int64_t row = 0; row < 2; ++row) {
    model::KvCache cache;
    const at::Tensor expected = model.logits(
        model.forward_cached(at::tensor(at::IntArrayRef(rows.blocks[static_cast<size_t>(row)]), at::kLong), cache));
    EXPECT_TRUE(at::allclose(logits[row], expected, 0, 1e-4));       // f32, another order of summation
    EXPECT_FALSE(at::allclose(logits[1 - row], expected, 0, 1e-1));  // rows are not swapped
  }
}

TEST(SaveLogits, GoldenOfTransformers) {
  REQUIRE_SHARED("goldens/llama/mha");
  const fs::path folder = test::shared_dir() / "goldens/llama/mha";
  model::Llama model = model::load_model(folder, {});
  const io::SafetensorsFile golden(folder / "expected.safetensors");
  const at::Tensor ids = golden.read("input_ids"), expected = golden.read("logits");
  std::vector<std::vector<int64_t>> rows;
  for (int64_t row = 0; row < ids.size(0); ++row) {
    const int64_t* data = ids.data_ptr<int64_t>() + row * ids.size(1);
    rows.emplace_back(data, data + ids.size(1));
  }
  TempDir dir;
  const auto result = save_logits(model, blocks_of(rows), 1000, dir / "out.safetensors");
  const at::Tensor logits = io::SafetensorsFile(dir / "out.safetensors").read("logits");
  EXPECT_LT((logits - expected).abs().max().item<double>(), 6.6e-5);  // the goldens' README
  EXPECT_NEAR(result.nll, golden.read("token_nll").to(at::kDouble).mean().item<double>(), 5e-5);
}

class Texts : public testing::Test {
 protected:
  void SetUp() override {
    REQUIRE_SHARED("goldens/mmlu/model");
    tokenizer_ = std::make_unique<text::Tokenizer>(test::shared_dir() / "goldens/mmlu/model");
  }
  TempDir dir_;
  std::unique_ptr<text::Tokenizer> tokenizer_;
};

TEST_F(Texts, OneBosAndBlocksInOrder) {
  const std::string text = "A first line.\nAnd a second, which is longer.\n\nThe end of it.\n";
  write_file(dir_ / "t.txt", text);
  const auto all = tokenizer_->encode(text, {.add_bos = true});
  const auto blocks = read_blocks(dir_ / "t.txt", *tokenizer_, 10, 0);
  std::vector<int64_t> joined;
  for (const auto& block : blocks.blocks) joined.insert(joined.end(), block.begin(), block.end());
  EXPECT_EQ(static_cast<int64_t>(joined.size()) + blocks.dropped_tokens, static_cast<int64_t>(all.size()));
  EXPECT_TRUE(std::equal(joined.begin(), joined.end(), all.begin()));
  EXPECT_EQ(joined[0], tokenizer_->bos_id());
  EXPECT_NE(blocks.blocks[1][0], tokenizer_->bos_id());
  EXPECT_EQ(blocks.partial_blocks, all.size() % 10 >= 2 ? 1 : 0);
  EXPECT_EQ(read_blocks(dir_ / "t.txt", *tokenizer_, 10, 2).blocks.size(), 2u);
}

TEST_F(Texts, DocumentsOfJsonLinesStandApart) {
  write_file(dir_ / "t.jsonl",
             "{\"text\": \"One document.\"}\n\n{\"text\": \"\"}\n{\"text\": \"Another one, longer than it.\"}\n");
  const auto blocks = read_blocks(dir_ / "t.jsonl", *tokenizer_, 100, 0);
  EXPECT_EQ(blocks.documents, 3);
  ASSERT_EQ(blocks.blocks.size(), 2u);
  EXPECT_EQ(blocks.dropped_tokens, 1);  // the BOS of the empty one
  EXPECT_EQ(blocks.blocks[0], tokenizer_->encode("One document.", {.add_bos = true}));
  EXPECT_EQ(blocks.blocks[1][0], tokenizer_->bos_id());
}

TEST_F(Texts, BadFiles) {
  write_file(dir_ / "t.jsonl", "{\"text\": \"x y z\"}\n{\"body\": \"\"}\n");
  try {
    read_blocks(dir_ / "t.jsonl", *tokenizer_, 100, 0);
    FAIL();
  } catch (const DataError& error) {
    EXPECT_NE(std::string(error.what()).find("t.jsonl:2: the key \"text\" is missing"), std::string::npos)
        << error.what();
  }
  write_file(dir_ / "empty.txt", "");
  EXPECT_THROW(read_blocks(dir_ / "empty.txt", *tokenizer_, 100, 0), DataError);
  write_file(dir_ / "latin.txt", "caf\xE9 au lait");
  EXPECT_THROW(read_blocks(dir_ / "latin.txt", *tokenizer_, 100, 0), DataError);
  EXPECT_THROW(read_blocks(dir_ / "absent.txt", *tokenizer_, 100, 0), UserError);
}

}  // namespace
}  // namespace qalora::eval
