#include "qalora/model/gptq_checkpoint.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/GradMode.h>
#include <gtest/gtest.h>

#include <limits>

#include "qalora/core/error.h"
#include "qalora/core/signals.h"
#include "qalora/io/safetensors.h"
#include "qalora/model/calibration_pass.h"
#include "qalora/model/work_folder.h"
#include "unit/model/random_checkpoint.h"

namespace qalora::model {
namespace {

using test::expect_part;
using test::refusal;
using test::TempDir;

constexpr int64_t kLength = 48;

// Rows of random ids, each of two segments.
text::Calibration calibration(int64_t rows = 8, uint64_t seed = 3) {
  text::Calibration result;
  tensor::RandomStream random(seed, "calibration ids");
  for (int64_t i = 0; i < rows; ++i) {
    text::CalibrationRow row;
    for (int64_t k = 0; k < kLength; ++k) row.ids.push_back(static_cast<int64_t>(random.below(400)));
    row.starts = {0, 20};
    result.rows.push_back(row);
    result.tokens += kLength;
  }
  return result;
}

GptqSettings settings(int bits = 2) {
  GptqSettings result;
  result.solver.bits = bits;
  result.solver.group_size = 32;
  result.batch_size = 3;
  return result;
}

GptqReport quantise(const fs::path& dense, const fs::path& out, const GptqSettings& how,
                    const text::Calibration& rows = calibration(), bool force = false) {
  const io::Checkpoint checkpoint(dense);
  return gptq_checkpoint(checkpoint, plan_quantization(checkpoint, {how.solver.bits, how.solver.group_size}), rows, how,
                         out, force);
}

std::string weights(const fs::path& folder) { return test::read_file(folder / "model.safetensors"); }

class GptqCheckpoint : public ::testing::Test {
 protected:
  GptqCheckpoint() { test::write_random_dense(dir_ / "dense"); }
  // Stops the run when `blocks` of them are finished.
  void stop_after(int64_t blocks, const fs::path& out, const GptqSettings& how) {
    const io::Checkpoint checkpoint(dir_ / "dense");
    const QuantizePlan plan = plan_quantization(checkpoint, {how.solver.bits, how.solver.group_size});
    GptqSettings stopping = how;
    stopping.on_block = [&](int64_t block) {
      if (block + 1 == blocks) throw Interrupted(15);
    };
    EXPECT_THROW(gptq_checkpoint(checkpoint, plan, calibration(), stopping, out, false), Interrupted);
    EXPECT_FALSE(fs::exists(out));
    EXPECT_EQ(finished_blocks(checkpoint, calibration(), how, out), blocks);
  }
  TempDir dir_;
};

TEST_F(GptqCheckpoint, WritesAModelThatLoadsWithALowerLossThanRounding) {
  for (const int bits : {2, 3, 4}) {
    const fs::path out = dir_ / ("int" + std::to_string(bits));
    const GptqReport report = quantise(dir_ / "dense", out, settings(bits));
    ASSERT_EQ(report.layers.size(), 14u);
    EXPECT_EQ(report.layers[0].name, "model.layers.0.self_attn.q_proj");
    EXPECT_EQ(report.layers[13].name, "model.layers.1.mlp.down_proj");
    for (const auto& layer : report.layers) {
      EXPECT_LT(layer.loss, layer.loss_round_to_nearest) << layer.name;
      EXPECT_LE(layer.loss, layer.loss_before_refit) << layer.name;
      EXPECT_GT(layer.loss, 0) << layer.name;
    }
    EXPECT_FALSE(fs::exists(WorkFolder::path_for(out)));
    const io::Checkpoint dense(dir_ / "dense"), packed(out);
    EXPECT_TRUE(std::ranges::equal(dense.bytes("lm_head.weight").span, packed.bytes("lm_head.weight").span));
    const LlamaConfig config = read_config(out);
    EXPECT_EQ(config.quantization->bits, bits);
    EXPECT_NO_THROW(load_model(out, {}));
  }
}

// Mean square difference of the final states from the dense model's, on tokens that were not calibrated on.
double distance_from_dense(const fs::path& dense, const fs::path& packed) {
  const text::Calibration other = calibration(6, 99);
  std::vector<text::Example> examples;
  for (const auto& row : other.rows) examples.push_back({row.ids, row.ids});
  const text::Batch batch = text::pad_batch(examples);
  const at::NoGradGuard no_grad;
  return (load_model(dense, {}).forward(batch) - load_model(packed, {}).forward(batch)).square().mean().item<double>();
}

TEST_F(GptqCheckpoint, IsNearerToTheDenseModelThanRounding) {
  quantise(dir_ / "dense", dir_ / "gptq", settings(), calibration(64));
  test::quantize_to(dir_ / "dense", dir_ / "rtn", 2, 32);
  EXPECT_LT(distance_from_dense(dir_ / "dense", dir_ / "gptq"),
            0.9 * distance_from_dense(dir_ / "dense", dir_ / "rtn"));
}

TEST_F(GptqCheckpoint, IsAFunctionOfItsInputs) {
  GptqSettings how = settings();
  quantise(dir_ / "dense", dir_ / "one", how);
  quantise(dir_ / "dense", dir_ / "two", how);
  EXPECT_EQ(weights(dir_ / "one"), weights(dir_ / "two"));
  quantise(dir_ / "dense", dir_ / "other rows", how, calibration(8, 4));
  EXPECT_NE(weights(dir_ / "one"), weights(dir_ / "other rows"));
  how.solver.refit = false;
  quantise(dir_ / "dense", dir_ / "other solver", how);
  EXPECT_NE(weights(dir_ / "one"), weights(dir_ / "other solver"));
}

TEST_F(GptqCheckpoint, OnePassDiffersFromOneBehindTheOther) {
  GptqSettings how = settings();
  quantise(dir_ / "dense", dir_ / "sequence", how);
  how.one_pass = true;
  quantise(dir_ / "dense", dir_ / "once", how);
  const io::Checkpoint sequence(dir_ / "sequence"), once(dir_ / "once");
  const auto same = [&](const std::string& module) {
    return at::equal(sequence.read(module + ".weight"), once.read(module + ".weight"));
  };
  EXPECT_TRUE(same("model.layers.0.self_attn.q_proj"));  // nothing is quantised before it
  EXPECT_FALSE(same("model.layers.0.self_attn.o_proj"));
  EXPECT_FALSE(same("model.layers.0.mlp.down_proj"));
}

// What the second block is calibrated on comes out of the first one's packed weights.
TEST_F(GptqCheckpoint, QuantisedBlocksFeedTheNext) {
  quantise(dir_ / "dense", dir_ / "int2", settings(2));
  quantise(dir_ / "dense", dir_ / "int4", settings(4));
  const io::Checkpoint dense(dir_ / "dense");
  const LlamaConfig config = read_config(dir_ / "dense");
  const auto rows = calibration();
  // The second block of the 2-bit model, solved by hand behind a first block from `feeder`.
  const auto codes = [&](const fs::path& feeder) {
    const at::NoGradGuard no_grad;
    const io::Checkpoint source(feeder);
    CalibrationPass pass("test", config, rows.rows, {.batch_size = 3});
    pass.embed(dense.read("model.embed_tokens.weight"));
    Layer first = load_layer(source, read_config(feeder), {}, 0);
    for (const auto& part : kProjections) {
      Linear& linear = first.*part.member;
      if (linear.quantised()) linear = Linear(linear.module(), linear.packed().dequantize(at::kFloat));
    }
    pass.run(first);
    quant::Hessian hessian(config.hidden_size, c10::kCPU);
    const Layer second = load_layer_frame(dense, config, {}, 1);
    pass.attention_input("model.layers.1.", second, [&](const at::Tensor& x) { hessian.add(x); });
    return quant::gptq("q", dense.read("model.layers.1.self_attn.q_proj.weight"), hessian.matrix(), settings(2).solver)
        .weight.codes;
  };
  const at::Tensor stored = io::Checkpoint(dir_ / "int2").read("model.layers.1.self_attn.q_proj.weight");
  EXPECT_TRUE(at::equal(stored, codes(dir_ / "int2")));
  EXPECT_FALSE(at::equal(stored, codes(dir_ / "dense")));
  EXPECT_FALSE(at::equal(stored, codes(dir_ / "int4")));
}

TEST_F(GptqCheckpoint, GoesOnBehindEachBlockWithTheSameBytes) {
  for (const bool one_pass : {false, true}) {
    GptqSettings how = settings();
    how.one_pass = one_pass;
    const fs::path whole = dir_ / ("whole" + std::to_string(one_pass));
    const GptqReport straight = quantise(dir_ / "dense", whole, how);
    EXPECT_EQ(straight.resumed_blocks, 0);
    for (const int64_t blocks : {1, 2}) {
      const fs::path out = dir_ / (whole.filename().string() + "-" + std::to_string(blocks));
      stop_after(blocks, out, how);
      const GptqReport resumed = quantise(dir_ / "dense", out, how);
      EXPECT_EQ(resumed.resumed_blocks, blocks);
      EXPECT_EQ(weights(whole), weights(out));
      ASSERT_EQ(resumed.layers.size(), straight.layers.size());
      for (size_t i = 0; i < resumed.layers.size(); ++i) EXPECT_EQ(resumed.layers[i].loss, straight.layers[i].loss);
      EXPECT_FALSE(fs::exists(WorkFolder::path_for(out)));
    }
  }
}

TEST_F(GptqCheckpoint, BlocksOfAnotherCallAreRefusedOrForcedAway) {
  const GptqSettings how = settings();
  GptqSettings other = how;
  other.solver.damping = 0.05;
  stop_after(1, dir_ / "out", how);
  const std::string text = refusal<UserError>([&] { quantise(dir_ / "dense", dir_ / "out", other); });
  expect_part(text, "damping was 0.01 and is 0.05");
  expect_part(text, "--force");
  expect_part(refusal<UserError>([&] { quantise(dir_ / "dense", dir_ / "out", how, calibration(8, 4)); }),
              "the calibration data differ");
  const GptqReport forced = quantise(dir_ / "dense", dir_ / "out", other, calibration(), /*force=*/true);
  EXPECT_EQ(forced.resumed_blocks, 0);
  quantise(dir_ / "dense", dir_ / "fresh", other);
  EXPECT_EQ(weights(dir_ / "out"), weights(dir_ / "fresh"));
}

TEST_F(GptqCheckpoint, ABlockThatWasCutShortIsMadeAgain) {
  quantise(dir_ / "dense", dir_ / "whole", settings());
  stop_after(2, dir_ / "out", settings());
  fs::resize_file(WorkFolder::path_for(dir_ / "out") / "block-00001.safetensors", 700);
  EXPECT_EQ(quantise(dir_ / "dense", dir_ / "out", settings()).resumed_blocks, 1);
  EXPECT_EQ(weights(dir_ / "whole"), weights(dir_ / "out"));
}

TEST_F(GptqCheckpoint, BlocksThatAreThereNeedNoDisk) {
  const io::Checkpoint checkpoint(dir_ / "dense");
  const QuantizePlan plan = plan_quantization(checkpoint, {2, 32});
  stop_after(1, dir_ / "out", settings());
  EXPECT_EQ(gptq_disk_bytes(plan, dir_ / "out", 0), 2 * plan.disk_bytes);
  EXPECT_EQ(gptq_disk_bytes(plan, dir_ / "out", 1),
            2 * plan.disk_bytes - fs::file_size(WorkFolder::path_for(dir_ / "out") / "block-00000.safetensors"));
}

TEST_F(GptqCheckpoint, TensorsThatStayAreCheckedBeforeTheFirstBlock) {
  std::map<std::string, at::Tensor> tensors;
  {
    const io::Checkpoint checkpoint(dir_ / "dense");
    for (const std::string& name : checkpoint.names()) tensors[name] = checkpoint.read(name).clone();
  }
  tensors.at("lm_head.weight").view({-1})[5].fill_(std::numeric_limits<double>::infinity());
  io::write_safetensors(dir_ / "dense/model.safetensors", tensors, {});
  GptqSettings how = settings();
  how.on_block = [](int64_t block) { ADD_FAILURE() << "block " << block << " was made"; };
  expect_part(refusal<DataError>([&] { quantise(dir_ / "dense", dir_ / "out", how); }),
              "'lm_head.weight' holds values that are not finite");
  EXPECT_FALSE(fs::exists(WorkFolder::path_for(dir_ / "out")));
}

TEST_F(GptqCheckpoint, TheEstimateGrowsWithThreads) {
  const io::Checkpoint checkpoint(dir_ / "dense");
  const auto solver = [&](GptqSettings how) {
    return gptq_memory(checkpoint, plan_quantization(checkpoint, {2, 32}), calibration(), how).solver;
  };
  const int before = at::get_num_threads();
  at::set_num_threads(1);
  const uint64_t one = solver(settings());
  at::set_num_threads(2);
  const uint64_t two = solver(settings());
  at::set_num_threads(before);
  EXPECT_GE(two, one + 3 * 8 * (uint64_t{1} << 20));
}

TEST_F(GptqCheckpoint, AFolderOfSomethingElseIsLeftAlone) {
  test::write_file(dir_ / "out.partial/mine", "x");
  expect_part(refusal<UserError>([&] { quantise(dir_ / "dense", dir_ / "out", settings(), calibration(), true); }),
              "is not a work folder");
  EXPECT_EQ(test::read_file(dir_ / "out.partial/mine"), "x");
  // Other programs have a "state.json" too.
  const std::string ours = R"({"identity": {"format": 1}})";
  for (const std::string& state :
       {std::string("{"), std::string("[1]"), std::string("{}"), std::string(R"({"identity": "me"})"), ours}) {
    test::write_file(dir_ / "out.partial/state.json", state);
    const std::string text =
        refusal<UserError>([&] { quantise(dir_ / "dense", dir_ / "out", settings(), calibration(), true); });
    expect_part(text, "is not a work folder");
    EXPECT_EQ(test::read_file(dir_ / "out.partial/mine"), "x");
  }
  fs::remove(dir_ / "out.partial/mine");  // one of another call, and a temporary
  test::write_file(dir_ / "out.partial/.block-00000.safetensors.qalora-tmp-1-2", "x");
  expect_part(refusal<UserError>([&] { quantise(dir_ / "dense", dir_ / "out", settings()); }),
              "holds blocks of another call (another version of qalora wrote them)");
  EXPECT_EQ(quantise(dir_ / "dense", dir_ / "out", settings(), calibration(), true).resumed_blocks, 0);
  // What a run that was killed before it wrote its state leaves.
  test::write_file(dir_ / "next.partial/.state.json.qalora-tmp-1-2", "{");
  EXPECT_EQ(quantise(dir_ / "dense", dir_ / "next", settings()).resumed_blocks, 0);
}

TEST_F(GptqCheckpoint, ActivationsThatAreNotFiniteNameTheirLayer) {
  const at::NoGradGuard no_grad;
  const io::Checkpoint checkpoint(dir_ / "dense");
  const LlamaConfig config = read_config(dir_ / "dense");
  const text::Calibration rows = calibration(2);
  const auto nothing = [](const at::Tensor&) {};
  CalibrationPass pass("model", config, rows.rows, {});
  pass.embed(checkpoint.read("model.embed_tokens.weight"));
  Layer layer = load_layer(checkpoint, config, {}, 0);
  EXPECT_NO_THROW(pass.attend("model.layers.0.", layer, nothing));
  layer.attention_norm.fill_(1e36);  // v's outputs are the first beyond fp32
  layer.v.dense().fill_(1e6);
  EXPECT_NO_THROW(pass.attention_input("model.layers.0.", layer, nothing));
  const std::string text = refusal<DataError>([&] { pass.attend("model.layers.0.", layer, nothing); });
  expect_part(text, "model: the inputs of 'model.layers.0.self_attn.o_proj' are not finite");
}

TEST(CalibrationPass, StepsGiveWhatTheModelGives) {
  TempDir dir;
  test::write_random_dense(dir / "dense");
  const at::NoGradGuard no_grad;
  const io::Checkpoint checkpoint(dir / "dense");
  const LlamaConfig config = read_config(dir / "dense");
  const text::Calibration rows = calibration(3);
  Llama model = load_model(dir / "dense", {});
  std::vector<std::vector<text::Example>> packed;
  for (const auto& row : rows.rows) {
    const auto part = [&](int64_t begin, int64_t end) {
      const std::vector<int64_t> ids(row.ids.begin() + begin, row.ids.begin() + end);
      return text::Example{ids, ids};
    };
    packed.push_back({part(0, row.starts[1]), part(row.starts[1], kLength)});
  }
  const at::Tensor expected = model.forward(text::pack_batch(packed, kLength));
  const auto ended = [&](bool steps, bool keep_products) {
    CalibrationPass pass("test", config, rows.rows, {.batch_size = 3, .keep_products = keep_products});
    pass.embed(model.embedding);
    const auto nothing = [](const at::Tensor&) {};
    for (const Layer& layer : model.layers) {
      if (!steps) {
        pass.run(layer);
        continue;
      }
      pass.attention_input("", layer, nothing);
      pass.attend("", layer, nothing);
      pass.mlp_input("", layer, nothing);
      pass.mlp_product("", layer, nothing);
      pass.finish(layer);
    }
    return rms_norm(pass.states(0), model.final_norm, config.norm_eps, at::kFloat).values;
  };
  // The same operators in the same order.
  EXPECT_TRUE(at::equal(ended(false, true), expected));
  EXPECT_TRUE(at::equal(ended(true, true), expected));
  EXPECT_TRUE(at::equal(ended(true, false), expected));
  // Must differ: without the border between the two segments.
  text::Calibration joined = rows;
  for (auto& row : joined.rows) row.starts = {0};
  CalibrationPass pass("test", config, joined.rows, {.batch_size = 3});
  pass.embed(model.embedding);
  for (const Layer& layer : model.layers) pass.run(layer);
  EXPECT_FALSE(at::allclose(rms_norm(pass.states(0), model.final_norm, config.norm_eps, at::kFloat).values, expected));
}

}  // namespace
}  // namespace qalora::model
