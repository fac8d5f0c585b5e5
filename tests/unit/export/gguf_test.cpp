// GGUF files read back by an independent reader (support/gguf_bytes.h) and by the program's own.
#include <ATen/ATen.h>
#include <c10/util/Half.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <set>

#include "../model/random_checkpoint.h"
#include "qalora/core/error.h"
#include "qalora/export/export.h"
#include "qalora/io/gguf_checkpoint.h"
#include "support/gguf_bytes.h"

namespace qalora::exporting {
namespace {

using test::expect_part;
using test::refusal;

float half(const std::string& bytes, size_t at) {
  uint16_t bits;
  std::memcpy(&bits, bytes.data() + at, 2);
  return static_cast<float>(c10::Half(bits, c10::Half::from_bits()));
}

// Row of the file that holds row `row` of ours, by the format's text: 2 j + t of a head is t * 8 + j here.
int64_t row_there(int64_t row, int64_t head_dim) {
  for (int64_t j = 0; j < head_dim / 2; ++j) {
    for (int64_t t = 0; t < 2; ++t) {
      if (row % head_dim == t * head_dim / 2 + j) return row / head_dim * head_dim + 2 * j + t;
    }
  }
  return -1;
}

class GgufExport : public ::testing::Test {
 protected:
  void SetUp() override { test::write_random_dense(dir_ / "dense"); }

  fs::path quantised(int bits, int64_t group_size) {
    const fs::path folder = dir_ / message("int", bits, "g", group_size);
    test::quantize_to(dir_ / "dense", folder, bits, group_size);
    return folder;
  }

  std::vector<TensorReport> write(const fs::path& model, const fs::path& out, const Options& options = {},
                                  const fs::path& adapter = {}) {
    const Source source(model, adapter);
    const Format& format = format_named("gguf");
    const Plan plan = format.plan(source, options);
    std::vector<TensorReport> reports = format.write(source, options, out, /*replace=*/false);
    if (adapter.empty()) {
      EXPECT_EQ(plan.bytes, fs::file_size(out));
    }
    return reports;
  }

  static test::PlainGguf plain(const fs::path& path) { return test::PlainGgufReader(test::read_file(path)).read(); }

  // Every weight of a Q4_1 tensor by plain loops over its blocks, in our order of rows; `permuted`: that of q and k.
  static at::Tensor weights(const test::PlainGguf::Tensor& tensor, bool permuted) {
    const auto columns = static_cast<int64_t>(tensor.dims[0]), rows = static_cast<int64_t>(tensor.dims[1]);
    at::Tensor result = at::empty({rows, columns});
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t there = permuted ? row_there(row, 16) : row;
      for (int64_t column = 0; column < columns; ++column) {
        const size_t block = static_cast<size_t>(there * columns / 32 + column / 32) * 20;
        const auto byte = static_cast<uint8_t>(tensor.bytes[block + 4 + static_cast<size_t>(column % 16)]);
        const int code = column % 32 < 16 ? byte & 15 : byte >> 4;
        result[row][column] = half(tensor.bytes, block) * static_cast<float>(code) + half(tensor.bytes, block + 2);
      }
    }
    return result;
  }

  test::TempDir dir_;
};

at::Tensor dense_weight(const fs::path& model, const std::string& module, int64_t rows, int64_t columns) {
  const io::Checkpoint checkpoint(model);
  return model::read_packed(checkpoint, module, rows, columns, *model::read_config(checkpoint).quantization)
      .dequantize(at::kFloat);
}

TEST_F(GgufExport, WeightsAreThoseOfTheModelUpToSixteenBits) {
  for (const auto& [bits, group_size] : {std::pair{2, 32}, {3, 32}, {4, 32}, {4, 64}, {3, -1}}) {
    const fs::path model = quantised(bits, group_size), out = dir_ / message(bits, "_", group_size, ".gguf");
    const auto reports = write(model, out);
    const test::PlainGguf file = plain(out);
    double worst = 0;
    for (const auto& report : reports) worst = std::max(worst, report.largest_error);
    EXPECT_GT(worst, 0) << bits;
    EXPECT_LT(worst, 0.02) << bits;  // 2^-11 * (code + zero point) steps, with zero points up to twice the range
    for (const auto& [there, here] :
         {std::pair{"blk.1.attn_q", "self_attn.q_proj"}, {"blk.1.ffn_down", "mlp.down_proj"}}) {
      const test::PlainGguf::Tensor& tensor = file.tensors.at(std::string(there) + ".weight");
      EXPECT_EQ(tensor.type, 3u);
      const bool permuted = std::string(there).ends_with("attn_q");
      const at::Tensor exact = dense_weight(model, std::string("model.layers.1.") + here,
                                            static_cast<int64_t>(tensor.dims[1]), static_cast<int64_t>(tensor.dims[0]));
      const double size = exact.abs().max().item<double>();
      EXPECT_LT((weights(tensor, permuted) - exact).abs().max().item<double>(), 2e-3 * size);
      // Must differ: the permutation left out (and, of a matrix that is not permuted, put in).
      EXPECT_GT((weights(tensor, !permuted) - exact).abs().max().item<double>(), 0.1 * size);
    }
  }
}

// Stored in the file's own type, and rounded to it; of rows that move and of others; at the front, the end and in
// between.
TEST_F(GgufExport, AnyDenseValueThatIsNotFiniteIsRefused) {
  const double infinity = std::numeric_limits<double>::infinity();
  for (const at::ScalarType dtype : {at::kFloat, at::kHalf, at::kBFloat16}) {
    for (const char* module : {"model.layers.1.self_attn.q_proj", "model.layers.1.mlp.down_proj"}) {
      const std::string name = std::string(module) + ".weight";
      const at::Tensor sound = io::Checkpoint(dir_ / "dense").read(name).to(dtype);
      const int64_t last = sound.numel() - 1;
      for (const auto& [place, value] :
           {std::pair{int64_t{0}, infinity}, {last, -infinity}, {last / 2 + 1, std::nan("")}}) {
        at::Tensor broken = sound.clone();
        broken.view(-1)[place] = value;
        test::rewrite(dir_ / "dense", name, broken);
        for (const char* type : {"", "float16", "q8_0"}) {
          const Options options{.weights_dtype = type, .offsets_dtype = ""};
          const std::string text = refusal<DataError>([&] { write(dir_ / "dense", dir_ / "broken.gguf", options); });
          expect_part(text, name);
          expect_part(text, "not finite");
        }
      }
      test::rewrite(dir_ / "dense", name, sound);
      write(dir_ / "dense", dir_ / "sound.gguf");  // must differ
      fs::remove(dir_ / "sound.gguf");
    }
  }
}

TEST_F(GgufExport, MetadataHasTheTypesThatTheEngineAsksFor) {
  write(quantised(4, 32), dir_ / "m.gguf");
  const test::PlainGguf file = plain(dir_ / "m.gguf");
  const std::map<std::string, std::string> expected = {{"general.architecture", "string:llama"},
                                                       {"general.file_type", "u32:3"},
                                                       {"general.quantization_version", "u32:2"},
                                                       {"llama.context_length", "u32:128"},
                                                       {"llama.embedding_length", "u32:64"},
                                                       {"llama.block_count", "u32:2"},
                                                       {"llama.feed_forward_length", "u32:160"},
                                                       {"llama.attention.head_count", "u32:4"},
                                                       {"llama.attention.head_count_kv", "u32:2"},
                                                       {"llama.attention.key_length", "u32:16"},
                                                       {"llama.attention.value_length", "u32:16"},
                                                       {"llama.rope.dimension_count", "u32:16"},
                                                       {"llama.rope.freq_base", "f32:10000.000000"},
                                                       {"llama.attention.layer_norm_rms_epsilon", "f32:0.000010"},
                                                       {"llama.vocab_size", "u32:400"},
                                                       {"tokenizer.ggml.model", "string:llama"},
                                                       {"tokenizer.ggml.tokens", "array:8:400"},
                                                       {"tokenizer.ggml.scores", "array:6:400"},
                                                       {"tokenizer.ggml.token_type", "array:5:400"},
                                                       {"tokenizer.ggml.bos_token_id", "u32:1"},
                                                       {"tokenizer.ggml.add_bos_token", "bool:1"}};
  for (const auto& [key, value] : expected)
    EXPECT_EQ(file.scalars.count(key) ? file.scalars.at(key) : "absent", value) << key;
  EXPECT_EQ(file.tensors.at("blk.0.attn_norm.weight").type, 0u);
  EXPECT_EQ(file.tensors.at("token_embd.weight").type, 1u);  // stored as F16
  EXPECT_EQ(file.tensors.at("token_embd.weight").dims, (std::vector<uint64_t>{64, 400}));
  EXPECT_EQ(file.tensors.at("blk.0.ffn_down.weight").dims, (std::vector<uint64_t>{160, 64}));
  EXPECT_EQ(file.tensors.size(), 2u * 9 + 3);
  const std::vector<std::string>& tokens = file.strings.at("tokenizer.ggml.tokens");
  EXPECT_EQ(std::set<std::string>(tokens.begin(), tokens.end()).size(), 400u);  // no two the same
}

TEST_F(GgufExport, ComesBackWithTheSameCodes) {
  for (const int bits : {2, 4}) {
    const fs::path model = quantised(bits, 64), out = dir_ / message("back", bits, ".gguf");
    write(model, out);
    const io::Checkpoint before(model), after(out);
    const model::LlamaConfig config = model::read_config(out);
    EXPECT_EQ(config.quantization->group_size, 32);
    for (const char* name : {"self_attn.k_proj", "self_attn.v_proj", "mlp.up_proj"}) {
      const std::string module = std::string("model.layers.0.") + name;
      const int64_t rows = before.info(module + ".weight").shape[0];
      const quant::PackedWeight a =
          model::read_packed(before, module, rows, 64, *model::read_config(model).quantization);
      const quant::PackedWeight b = model::read_packed(after, module, rows, 64, *config.quantization);
      std::vector<uint8_t> here(64), there(64);
      for (int64_t row = 0; row < rows; ++row) {
        kernels::unpack_row(reinterpret_cast<const uint32_t*>(a.codes[row].const_data_ptr<int32_t>()), 64, bits,
                            here.data());
        kernels::unpack_row(reinterpret_cast<const uint32_t*>(b.codes[row].const_data_ptr<int32_t>()), 64, 4,
                            there.data());
        ASSERT_EQ(here, there) << module << " " << row;
      }
      EXPECT_TRUE(at::equal(b.scales, a.scales.to(at::kHalf).to(at::kFloat).repeat_interleave(2, 1)));
    }
  }
}

TEST_F(GgufExport, Q4_1BlocksGoInAndOutByteForByte) {
  write(quantised(4, 32), dir_ / "a.gguf");
  const auto reports = write(dir_ / "a.gguf", dir_ / "b.gguf");
  const test::PlainGguf a = plain(dir_ / "a.gguf"), b = plain(dir_ / "b.gguf");
  EXPECT_EQ(a.order, b.order);
  for (const std::string& name : a.order) EXPECT_TRUE(a.tensors.at(name).bytes == b.tensors.at(name).bytes) << name;
  for (const auto& report : reports) EXPECT_TRUE(report.lossless()) << report.tensor;
}

TEST_F(GgufExport, DenseModelsInTheTypeThatIsAskedFor) {
  for (const auto& [dtype, type, file_type, error] : {std::tuple{"float32", 0u, "u32:0", 0.0},
                                                      {"float16", 1u, "u32:1", 0.0},
                                                      {"bfloat16", 30u, "u32:32", 0.004},
                                                      {"q8_0", 8u, "u32:7", 0.005}}) {
    const fs::path out = dir_ / (std::string(dtype) + ".gguf");
    const auto reports = write(dir_ / "dense", out, {.weights_dtype = dtype, .offsets_dtype = ""});
    const test::PlainGguf file = plain(out);
    EXPECT_EQ(file.tensors.at("blk.0.attn_q.weight").type, type);
    EXPECT_EQ(file.tensors.at("token_embd.weight").type, type);
    EXPECT_EQ(file.tensors.at("output_norm.weight").type, 0u);
    EXPECT_EQ(file.scalars.at("general.file_type"), file_type);
    for (const auto& report : reports) EXPECT_LE(report.largest_error, error) << dtype << " " << report.tensor;
    // Normal numbers: of each 32, some are smaller than half a step of q8_0.
    EXPECT_EQ(totals(reports).flushed > 0, type == 8u) << dtype;
    // Read again: the same model up to that error.
    const io::Checkpoint before(dir_ / "dense"), after(out);
    const std::string name = "model.embed_tokens.weight";
    const at::Tensor exact = before.read(name).to(at::kFloat), read = after.read(name).to(at::kFloat);
    EXPECT_LE((exact - read).abs().max().item<double>(), (error + 1e-7) * exact.abs().max().item<double>());
  }
}

TEST_F(GgufExport, RefusesWhatTheContainerCannotHold) {
  const auto plan = [&](const fs::path& model, const Options& options = {}) {
    return refusal<UserError>([&] { format_named("gguf").plan(Source(model, {}), options); });
  };
  const std::string odd = plan(quantised(4, 16));
  expect_part(odd, "groups of 16");
  expect_part(odd, "--dtype-of-weights");
  write(dir_ / "int4g16", dir_ / "odd.gguf", {.weights_dtype = "q8_0", .offsets_dtype = ""});
  expect_part(plan(quantised(4, 32), {.weights_dtype = "flaot16", .offsets_dtype = ""}), "float16");
  expect_part(plan(dir_ / "int4g32", {.weights_dtype = "", .offsets_dtype = "float16"}), "--dtype-of-offsets");
  // Offsets beyond 16 bits: nothing is left behind.
  const std::string offsets = "model.layers.0.mlp.up_proj.biases";
  test::rewrite(dir_ / "int4g32", offsets, io::Checkpoint(dir_ / "int4g32").read(offsets) + 1e5);
  expect_part(refusal<UserError>([&] { write(dir_ / "int4g32", dir_ / "large.gguf"); }), "above 65504");
  EXPECT_FALSE(fs::exists(dir_ / "large.gguf"));
}

// alpha / rank times B A of the adapter's file is what the adapter adds to each weight, rows of q in the file's order.
TEST_F(GgufExport, AnAdapterLiesBesideItsBase) {
  const fs::path model = quantised(4, 32);
  for (const io::Pooling pooling : {io::Pooling::kSum, io::Pooling::kMean}) {
    const io::AdapterFile adapter = test::random_adapter(model, pooling, 0.1);
    const std::string name = io::pooling_name(pooling);
    test::write_adapter_to(dir_ / name, adapter);
    write(model, dir_ / (name + "-model.gguf"), {}, dir_ / name);
    const test::PlainGguf file = plain(dir_ / (name + "-model.lora.gguf"));
    EXPECT_EQ(file.scalars.at("general.type"), "string:adapter");
    EXPECT_EQ(file.scalars.at("adapter.type"), "string:lora");
    EXPECT_EQ(file.scalars.at("general.architecture"), "string:llama");
    const double alpha = std::stod(file.scalars.at("adapter.lora.alpha").substr(4));
    const auto matrix = [&](const std::string& tensor) {
      const test::PlainGguf::Tensor& stored = file.tensors.at(tensor);
      const at::Tensor result = at::empty({static_cast<int64_t>(stored.dims[1]), static_cast<int64_t>(stored.dims[0])});
      std::memcpy(result.data_ptr(), stored.bytes.data(), stored.bytes.size());
      return result.to(at::kDouble);
    };
    for (const auto& [there, here] :
         {std::pair{"blk.0.attn_q.weight", "self_attn.q_proj"}, {"blk.1.ffn_down.weight", "mlp.down_proj"}}) {
      const at::Tensor a = matrix(std::string(there) + ".lora_a"), b = matrix(std::string(there) + ".lora_b");
      const at::Tensor added = b.mm(a) * (alpha / static_cast<double>(a.size(0)));
      const io::AdapterWeights& weights =
          adapter.modules.at((there[4] == '0' ? "model.layers.0." : "model.layers.1.") + std::string(here));
      const double factor = adapter.config.scaling / (pooling == io::Pooling::kMean ? 32 : 1);
      const at::Tensor exact =
          weights.b.to(at::kDouble).mm(weights.a.to(at::kDouble)).mul(factor).repeat_interleave(32, 1);
      const bool permuted = there[4] == '0';
      at::Tensor sorted = at::empty_like(added);
      for (int64_t row = 0; row < added.size(0); ++row) sorted[row] = added[permuted ? row_there(row, 16) : row];
      const double size = exact.abs().max().item<double>();
      EXPECT_LT((sorted - exact).abs().max().item<double>(), 1e-6 * size) << name << there;
      if (permuted) {
        EXPECT_GT((added - exact).abs().max().item<double>(), 0.1 * size);  // must differ: rows as they lie
      }
    }
  }
}

TEST_F(GgufExport, ModelAndAdapterAppearTogetherOrNotAtAll) {
  const fs::path model = quantised(4, 32);
  io::AdapterFile adapter = test::random_adapter(model, io::Pooling::kSum, 0.1);
  adapter.config.base_state_fingerprint = "";  // the offsets change below
  test::write_adapter_to(dir_ / "adapter", adapter);
  const std::string offsets = "model.layers.1.mlp.up_proj.biases";
  const at::Tensor good = io::Checkpoint(model).read(offsets);
  test::rewrite(model, offsets, good + 1e5);
  test::refusal<UserError>([&] { write(model, dir_ / "v1.1", {}, dir_ / "adapter"); });  // halfway through the model
  EXPECT_FALSE(fs::exists(dir_ / "v1.1") || fs::exists(dir_ / "v1.1.lora.gguf"));
  test::rewrite(model, offsets, good);
  write(model, dir_ / "v1.1", {}, dir_ / "adapter");
  write(model, dir_ / "v1.2", {}, dir_ / "adapter");  // not refused: a name of its own
  for (const char* name : {"v1.1", "v1.1.lora.gguf", "v1.2", "v1.2.lora.gguf"})
    EXPECT_TRUE(fs::exists(dir_ / name)) << name;
  adapter.config.alpha = 4e300, adapter.config.scaling = 1e300;  // of rank 4
  test::write_adapter_to(dir_ / "infinite", adapter);
  expect_part(refusal<DataError>([&] { write(model, dir_ / "v1.3", {}, dir_ / "infinite"); }), "not finite");
  EXPECT_FALSE(fs::exists(dir_ / "v1.3") || fs::exists(dir_ / "v1.3.lora.gguf"));
}

TEST_F(GgufExport, ScaledRopeComesBack) {
  nlohmann::json json = test::random_config_json();
  json["rope_theta"] = 500000.0;
  json["rope_scaling"] = {{"rope_type", "llama3"},
                          {"factor", 8.0},
                          {"low_freq_factor", 1.0},
                          {"high_freq_factor", 4.0},
                          {"original_max_position_embeddings", 64}};
  json["tie_word_embeddings"] = true;
  test::write_random_dense(dir_ / "scaled", json);
  write(dir_ / "scaled", dir_ / "scaled.gguf");
  const model::RopeConfig rope = model::read_config(dir_ / "scaled.gguf").rope;
  EXPECT_EQ(rope.kind, model::RopeKind::kLlama3);
  EXPECT_EQ(rope.factor, 8);
  EXPECT_EQ(rope.theta, 500000);
  EXPECT_NEAR(rope.low_freq_factor / static_cast<double>(rope.original_context), 1.0 / 64, 1e-9);
  EXPECT_TRUE(model::read_config(dir_ / "scaled.gguf").tied_head);
  EXPECT_EQ(plain(dir_ / "scaled.gguf").tensors.count("output.weight"), 0u);
  json["rope_scaling"] = {{"rope_type", "dynamic"}, {"factor", 2.0}};
  test::write_random_dense(dir_ / "dynamic", json);
  expect_part(refusal<UserError>([&] { format_named("gguf").plan(Source(dir_ / "dynamic", {}), {}); }),
              "--to safetensors");
}

}  // namespace
}  // namespace qalora::exporting
