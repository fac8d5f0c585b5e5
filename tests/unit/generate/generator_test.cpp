#include "qalora/generate/generator.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>

#include "qalora/core/error.h"
#include "qalora/core/format.h"
#include "qalora/io/safetensors.h"
#include "qalora/model/load.h"
#include "support/support.h"

namespace qalora::generate {
namespace {

model::Llama tiny_model(int64_t context_length = 64) {
  model::LlamaConfig config;
  config.model_type = "llama";
  config.vocab_size = 50;
  config.hidden_size = 32;
  config.intermediate_size = 48;
  config.layers = 2;
  config.heads = config.kv_heads = 4;
  config.head_dim = 8;
  config.context_length = context_length;
  config.initializer_range = 0.5;
  return model::new_model(config, 3);
}

std::vector<int64_t> ids_of(model::Llama& model, const GenerateOptions& options) {
  return generate(model, {1, 7, 9}, options, [](int64_t) {}).ids;
}

class Greedy : public testing::TestWithParam<const char*> {};

TEST_P(Greedy, EqualsTransformers) {
  const std::string relative = std::string("goldens/llama/") + GetParam();
  REQUIRE_SHARED(relative);
  const fs::path folder = test::shared_dir() / relative;
  model::Llama model = model::load_model(folder, {});
  const at::Tensor golden =
      io::SafetensorsFile(folder / "expected.safetensors").read("greedy_ids");  // [rows, tokens] i64
  for (int64_t row = 0; row < golden.size(0); ++row) {
    const int64_t* data = golden.data_ptr<int64_t>() + row * golden.size(1);
    const std::vector<int64_t> all(data, data + golden.size(1));
    // The golden is prompt and continuation in one; a cut inside the continuation must go on to the same end.
    GenerateOptions options;
    options.max_tokens = 12;
    std::vector<int64_t> whole(all.begin(), all.end() - options.max_tokens), other(whole);
    const auto result = generate(model, whole, options, [&](int64_t id) { whole.push_back(id); });
    EXPECT_EQ(whole, all);
    EXPECT_FALSE(result.stopped);
    EXPECT_EQ(result.decode_steps, options.max_tokens - 1);
    for (auto& id : other) id = (id + 1) % model.config.vocab_size;
    generate(model, other, options, [&](int64_t id) { other.push_back(id); });
    EXPECT_FALSE(std::equal(all.end() - options.max_tokens, all.end(), other.end() - options.max_tokens));
  }
}
INSTANTIATE_TEST_SUITE_P(Goldens, Greedy, testing::Values("mha", "gqa_tied"));

TEST(Generator, CacheEqualsWholeForwardPasses) {
  model::Llama model = tiny_model();
  GenerateOptions options;
  options.max_tokens = 12;
  std::vector<int64_t> whole = {1, 7, 9};
  at::NoGradGuard no_grad;
  for (int i = 0; i < 12; ++i) {
    model::KvCache fresh;
    const at::Tensor hidden = model.forward_cached(at::tensor(at::IntArrayRef(whole), at::kLong), fresh);
    whole.push_back(model.logits(hidden)[-1].argmax().item<int64_t>());
  }
  EXPECT_EQ(ids_of(model, options), std::vector<int64_t>(whole.begin() + 3, whole.end()));
}

TEST(Generator, StopsAtAStopIdWithoutIt) {
  model::Llama model = tiny_model();
  GenerateOptions options;
  options.max_tokens = 20;
  const auto all = ids_of(model, options);
  ASSERT_EQ(all.size(), 20u);
  options.stop_ids = {49, all[6]};
  const auto result = generate(model, {1, 7, 9}, options, [](int64_t) {});
  EXPECT_TRUE(result.stopped);
  const auto first = std::find_if(all.begin(), all.end(), [&](int64_t id) { return id == 49 || id == all[6]; });
  EXPECT_EQ(result.ids, std::vector<int64_t>(all.begin(), first));
  EXPECT_EQ(result.prompt_tokens, 3);
}

TEST(Generator, EndsWhenTheContextIsFull) {
  model::Llama model = tiny_model(16);
  GenerateOptions options;
  options.max_tokens = 100;
  const auto result = generate(model, {1, 7, 9}, options, [](int64_t) {});
  EXPECT_EQ(result.ids.size(), 13u);
  EXPECT_FALSE(result.stopped);
  EXPECT_THROW(generate(model, std::vector<int64_t>(16, 1), options, [](int64_t) {}), UserError);
}

TEST(Generator, SamplingIsRepeatableAndSeeded) {
  model::Llama model = tiny_model();
  GenerateOptions options;
  options.max_tokens = 20;
  options.sampler = {.temperature = 1.5, .seed = 4};
  const auto first = ids_of(model, options);
  EXPECT_EQ(first, ids_of(model, options));
  options.sampler.seed = 5;
  EXPECT_NE(first, ids_of(model, options));
}

TEST(Generator, RefusesBadRequests) {
  model::Llama model = tiny_model();
  EXPECT_THROW(generate(model, {}, {}, [](int64_t) {}), UserError);
  EXPECT_THROW(generate(model, {1, 50}, {}, [](int64_t) {}), DataError);
  GenerateOptions none;
  none.max_tokens = 0;
  EXPECT_THROW(generate(model, {1}, none, [](int64_t) {}), UserError);
}

TEST(TextStream, PiecesJoinToTheDecodedText) {
  REQUIRE_SHARED("data/tokenizer/llama2.tokenizer.model");
  test::TempDir dir;
  fs::copy_file(test::shared_dir() / "data/tokenizer/llama2.tokenizer.model", dir / "tokenizer.model");
  const text::Tokenizer tokenizer(dir.path());
  const std::string text = "Caf\xC3\xA9 \xF0\x9F\xA6\x99 llama\n  two blanks, \xE4\xBD\xA0\xE5\xA5\xBD.";
  const auto ids = tokenizer.encode(text, {});
  TextStream stream(tokenizer);
  std::string shown;
  for (int64_t id : ids) {
    const std::string piece = stream.push(id);
    EXPECT_TRUE(valid_utf8(piece));
    shown += piece;
  }
  shown += stream.finish();
  EXPECT_EQ(shown, text);
  EXPECT_EQ(stream.text(), text);
  // What continues a prompt is spelt as it stands there, with its blank; alone it begins without.
  const std::vector<int64_t> prompt(
      ids.begin(), ids.begin() + static_cast<int64_t>(tokenizer.encode("Caf\xC3\xA9 \xF0\x9F\xA6\x99", {}).size()));
  const std::vector<int64_t> rest(ids.begin() + static_cast<int64_t>(prompt.size()), ids.end());
  const auto streamed = [&](TextStream out) {
    for (int64_t id : rest) out.push(id);
    out.finish();
    return out.text();
  };
  EXPECT_EQ(streamed(TextStream(tokenizer, prompt)), " llama\n  two blanks, \xE4\xBD\xA0\xE5\xA5\xBD.");
  EXPECT_EQ(streamed(TextStream(tokenizer)), "llama\n  two blanks, \xE4\xBD\xA0\xE5\xA5\xBD.");
  // Ended inside the llama's four bytes: what is shown is still UTF-8.
  TextStream cut(tokenizer);
  const auto llama = tokenizer.encode("\xF0\x9F\xA6\x99", {});
  for (size_t i = 0; i + 1 < llama.size(); ++i) cut.push(llama[i]);
  cut.finish();
  EXPECT_TRUE(valid_utf8(cut.text()));
}

}  // namespace
}  // namespace qalora::generate
