#include "qalora/io/gguf_checkpoint.h"

#include <ATen/ATen.h>
#include <c10/util/Half.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

#include "qalora/core/error.h"
#include "qalora/io/gguf_config.h"
#include "qalora/io/gguf_names.h"
#include "qalora/kernels/packed.h"
#include "support/gguf_bytes.h"
#include "support/support.h"

namespace qalora::io {
namespace {

using test::GgufBytes;
using test::raw;

// One layer, 32 hidden units, two heads of 16 (one of keys), a vocabulary of 8.
struct TinyModel {
  std::string architecture = "llama";
  uint32_t type = 3;
  std::vector<std::string> without = {};
  std::map<std::string, std::pair<std::vector<uint64_t>, std::pair<uint32_t, std::string>>> more =
      {};  // dimensions, type, bytes

  GgufBytes file() const {
    GgufBytes file;
    file.text("general.architecture", architecture);
    const auto key = [&](const char* name) { return architecture + "." + name; };
    file.u32(key("context_length"), 16)
        .u32(key("embedding_length"), 32)
        .u32(key("block_count"), 1)
        .u32(key("feed_forward_length"), 32);
    file.u32(key("attention.head_count"), 2)
        .u32(key("attention.head_count_kv"), 1)
        .f32(key("attention.layer_norm_rms_epsilon"), 1e-5f);
    const auto add = [&](const std::string& name, uint64_t rows, uint32_t kind) {
      if (std::find(without.begin(), without.end(), name) != without.end()) return;
      std::string bytes;
      const size_t block = kind == 2   ? 18
                           : kind == 3 ? 20
                           : kind == 6 ? 22
                           : kind == 7 ? 24
                           : kind == 8 ? 34
                           : kind == 1 ? 64
                                       : 128;
      for (size_t i = 0; i < block * rows; ++i) bytes += static_cast<char>(i * 37 % 61);
      file.tensor(name, rows == 1 ? std::vector<uint64_t>{32} : std::vector<uint64_t>{32, rows}, kind, bytes);
    };
    add("token_embd.weight", 8, 0);
    add("output_norm.weight", 1, 0);
    for (const char* norm : {"attn_norm", "ffn_norm"}) add(std::string("blk.0.") + norm + ".weight", 1, 0);
    for (const auto& [name, rows] : std::map<std::string, uint64_t>{{"attn_q", 32},
                                                                    {"attn_k", 16},
                                                                    {"attn_v", 16},
                                                                    {"attn_output", 32},
                                                                    {"ffn_gate", 32},
                                                                    {"ffn_up", 32},
                                                                    {"ffn_down", 32}}) {
      add("blk.0." + name + ".weight", rows, type);
    }
    for (const auto& [name, tensor] : more) file.tensor(name, tensor.first, tensor.second.first, tensor.second.second);
    return file;
  }
};

class GgufCheckpointTest : public ::testing::Test {
 protected:
  fs::path write(const GgufBytes& file) {
    test::write_file(dir_ / "m.gguf", file.bytes());
    return dir_ / "m.gguf";
  }
  std::string refusal(const GgufBytes& file) {
    const fs::path path = write(file);
    try {
      const GgufCheckpoint checkpoint(path);
    } catch (const DataError& error) {
      EXPECT_EQ(std::string(error.what()).find(path.string()), 0u);
      return error.what();
    }
    ADD_FAILURE() << "accepted";
    return "";
  }
  void expect_refused(const GgufBytes& file, const std::string& part) {
    const std::string text = refusal(file);
    EXPECT_NE(text.find(part), std::string::npos) << text;
  }

 private:
  test::TempDir dir_;
};

TEST_F(GgufCheckpointTest, ConfigurationInHuggingFacesTerms) {
  const GgufCheckpoint checkpoint(write(TinyModel().file()));
  const nlohmann::json& config = checkpoint.config();
  EXPECT_EQ(config["model_type"], "llama");
  EXPECT_EQ(config["num_key_value_heads"], 1);
  EXPECT_EQ(config["head_dim"], 16);
  EXPECT_EQ(config["rms_norm_eps"], 1e-5);
  EXPECT_EQ(config["vocab_size"], 8);
  EXPECT_EQ(config["tie_word_embeddings"], true);  // there is no output.weight
  EXPECT_EQ(config["rope_theta"], 10000);
  EXPECT_EQ(config["quantization"]["group_size"], 32);
  EXPECT_FALSE(GgufCheckpoint(write(TinyModel{.type = 1}.file())).config().contains("quantization"));
}

TEST_F(GgufCheckpointTest, RefusesWhatItCannotRunByName) {
  expect_refused(TinyModel{.architecture = "gemma2"}.file(), "architecture 'gemma2' is not supported");
  expect_refused(GgufBytes(), "'general.architecture' is missing");
  expect_refused(TinyModel().file().text("general.type", "adapter"), "is an adapter");
  expect_refused(TinyModel().file().u32("split.count", 3), "one part of several");
  expect_refused(TinyModel().file().u32("llama.expert_count", 8), "mixtures of experts");
  expect_refused(TinyModel().file().f32("llama.logit_scale", 2), "'llama.logit_scale' is not known");
  expect_refused(TinyModel().file().u32("llama.rope.dimension_count", 8), "partial rotation");
  expect_refused(TinyModel().file().text("llama.rope.scaling.type", "longrope"), "'longrope'");
  expect_refused(TinyModel{.without = {"token_embd.weight"}}.file(), "token_embd.weight");
  expect_refused(TinyModel{.more = {{"blk.0.surprise.weight", {{32}, {0, std::string(128, '\0')}}}}}.file(),
                 "'blk.0.surprise.weight' is not part of");
  expect_refused(TinyModel{.more = {{"blk.00.attn_q.weight", {{32}, {0, std::string(128, '\0')}}}}}.file(),
                 "'blk.00.attn_q.weight' is not part of");
  expect_refused(TinyModel{.more = {{"blk.0.attn_q.bias", {{32}, {0, std::string(128, '\0')}}}}}.file(),
                 "some of the biases");
}

TEST_F(GgufCheckpointTest, TypesThatAreNotReadAreNamedWithThoseThatAre) {
  expect_refused(TinyModel{.more = {{"output.weight", {{256, 8}, {14, std::string(210 * 8, '\0')}}}}}.file(), "Q6_K");
  expect_refused(TinyModel{.more = {{"output.weight", {{256, 8}, {14, std::string(210 * 8, '\0')}}}}}.file(),
                 "Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0");
  expect_refused(
      TinyModel{.without = {"output_norm.weight"}, .more = {{"output_norm.weight", {{32}, {8, std::string(34, '\0')}}}}}
          .file(),
      "a vector of type Q8_0");
}

TEST_F(GgufCheckpointTest, HeadsMustHaveTheirRows) {
  expect_refused(TinyModel{.without = {"blk.0.attn_q.weight"},
                           .more = {{"blk.0.attn_q.weight", {{32, 48}, {0, std::string(128 * 48, '\0')}}}}}
                     .file(),
                 "expected 2 heads of 16");
}

TEST_F(GgufCheckpointTest, RowsOfQAndKAreSortedInLlamaOnly) {
  const auto q = [&](const std::string& architecture) {
    return GgufCheckpoint(write(TinyModel{.architecture = architecture, .type = 0}.file()))
        .read("model.layers.0.self_attn.q_proj.weight");
  };
  const at::Tensor llama = q("llama"), qwen = q("qwen2");
  EXPECT_FALSE(at::equal(llama, qwen));
  EXPECT_TRUE(at::equal(llama[1], qwen[2]));  // 2 j + t with j = 1, t = 0
  EXPECT_TRUE(at::equal(llama[8], qwen[1]));  // j = 0, t = 1
  EXPECT_TRUE(at::equal(llama[16 + 9], qwen[16 + 3]));
}

// Element `i` of a block, by the format's text.
float element(uint32_t type, const std::byte* block, int i) {
  const auto half = [&](size_t at) {
    uint16_t bits;
    std::memcpy(&bits, block + at, 2);
    return static_cast<float>(c10::Half(bits, c10::Half::from_bits()));
  };
  if (type == 8) return half(0) * static_cast<float>(static_cast<int8_t>(block[2 + i]));
  const size_t header = type == 3 || type == 7 ? 4 : 2;
  uint32_t high = 0;
  if (type >= 6) std::memcpy(&high, block + header, 4);
  const auto both = static_cast<uint8_t>(block[header + (type >= 6 ? 4 : 0) + static_cast<size_t>(i % 16)]);
  const uint32_t code = (i < 16 ? both & 15u : both >> 4) + (high >> i & 1) * 16;
  return header == 4 ? half(0) * static_cast<float>(code) + half(2)
                     : half(0) * (static_cast<float>(code) - (type == 2 ? 8 : 16));
}

TEST_F(GgufCheckpointTest, EveryTypeOfBlock) {
  for (const auto& [type, bits] : std::map<uint32_t, int>{{2, 4}, {3, 4}, {6, 5}, {7, 5}, {8, 8}}) {
    const GgufCheckpoint checkpoint(write(TinyModel{.type = type}.file()));
    EXPECT_EQ(checkpoint.config()["quantization"]["bits"], bits);
    const std::string module = "model.layers.0.mlp.down_proj";
    const at::Tensor scales = checkpoint.read(module + ".scales"), offsets = checkpoint.read(module + ".biases"),
                     codes = checkpoint.read(module + ".weight");
    const GgufTensor& stored = checkpoint.file().contents().tensors.at("blk.0.ffn_down.weight");
    for (int64_t row = 0; row < 32; ++row) {
      std::vector<uint8_t> each(32);
      kernels::unpack_row(reinterpret_cast<const uint32_t*>(codes[row].const_data_ptr<int32_t>()), 32, bits,
                          each.data());
      for (int i = 0; i < 32; ++i) {
        const float expected =
            element(type, stored.bytes.data() + row * static_cast<int64_t>(stored.bytes.size() / 32), i);
        const float read = scales[row][0].item<float>() * static_cast<float>(each[static_cast<size_t>(i)]) +
                           offsets[row][0].item<float>();
        ASSERT_NEAR(read, expected, 1e-6 * (std::abs(expected) + std::abs(offsets[row][0].item<float>())))
            << type << " " << row << " " << i;
      }
    }
  }
}

TEST_F(GgufCheckpointTest, ModulesOfOtherBitsAreNamed) {
  std::string bytes(32 * 34, '\1');
  const GgufCheckpoint checkpoint(write(
      TinyModel{.without = {"blk.0.ffn_up.weight"}, .more = {{"blk.0.ffn_up.weight", {{32, 32}, {8, bytes}}}}}.file()));
  EXPECT_EQ(checkpoint.config()["quantization"]["bits"], 4);
  EXPECT_EQ(checkpoint.config()["quantization"]["model.layers.0.mlp.up_proj"]["bits"], 8);
  EXPECT_EQ(checkpoint.info("model.layers.0.mlp.up_proj.weight").shape, (std::vector<int64_t>{32, 8}));
}

TEST(GgufNames, ThereAndBack) {
  for (const char* name :
       {"token_embd.weight", "output.weight", "output_norm.weight", "blk.0.attn_q.weight", "blk.31.attn_k.bias",
        "blk.127.ffn_down.weight", "blk.2.attn_q_norm.weight", "blk.9.ffn_norm.weight"}) {
    EXPECT_EQ(name_to_gguf(*name_from_gguf(name)), name);
  }
  EXPECT_EQ(name_from_gguf("blk.3.attn_output.weight"), "model.layers.3.self_attn.o_proj.weight");
  for (const char* name :
       {"", ".weight", "blk..attn_q.weight", "blk.-1.attn_q.weight", "blk.1.attn_q", "blk.1.attn_q.scale",
        "blk.99999999999.attn_q.weight", "model.layers.0.mlp.up_proj.weight", "blk.+1.attn_q.weight"}) {
    EXPECT_EQ(name_from_gguf(name), std::nullopt) << name;
  }
}

std::vector<float> narrow(const std::vector<double>& values) { return {values.begin(), values.end()}; }

TEST(FitLlama3, FindsTheParametersOfKnownModels) {
  for (const Llama3Scaling& known :
       {Llama3Scaling{.factor = 8}, Llama3Scaling{.factor = 32}, Llama3Scaling{.factor = 8, .original_context = 64}}) {
    for (const int64_t head_dim : {16, 64, 128}) {
      const auto fitted = fit_llama3(narrow(llama3_divisors(known, 500000, head_dim)), 500000);
      ASSERT_TRUE(fitted.has_value()) << known.original_context << " " << head_dim;
      const auto made = llama3_divisors(*fitted, 500000, head_dim), expected = llama3_divisors(known, 500000, head_dim);
      for (size_t i = 0; i < made.size(); ++i) EXPECT_NEAR(made[i], expected[i], 1e-6 * expected[i]);
    }
  }
}

TEST(FitLlama3, SolvesForUnusualParametersAndRefusesOthers) {
  const Llama3Scaling unusual{.factor = 10, .low_freq_factor = 1.5, .high_freq_factor = 6, .original_context = 4096};
  std::vector<float> divisors = narrow(llama3_divisors(unusual, 500000, 128));
  const auto fitted = fit_llama3(divisors, 500000);
  ASSERT_TRUE(fitted.has_value());
  EXPECT_NEAR(fitted->low_freq_factor / static_cast<double>(fitted->original_context), 1.5 / 4096, 1e-8);
  // Must differ: another theta, a divisor that is a little off.
  EXPECT_FALSE(fit_llama3(divisors, 10000).has_value());
  divisors[30] *= 1.0001f;
  EXPECT_FALSE(fit_llama3(divisors, 500000).has_value());
  EXPECT_FALSE(fit_llama3({}, 500000).has_value());
  EXPECT_FALSE(fit_llama3({1, 1, 1}, 500000).has_value());
  EXPECT_FALSE(fit_llama3({NAN, 8, 8}, 500000).has_value());
}

}  // namespace
}  // namespace qalora::io
