// GPTQ through a model on an accelerator: the same code, the same answers.
#include <gtest/gtest.h>

#include "accelerator/tiny_model.h"
#include "qalora/model/gptq_checkpoint.h"
#include "support/support.h"

namespace qalora::test {
namespace {

text::Calibration random_rows(int64_t rows, int64_t length) {
  text::Calibration result;
  for (int64_t i = 0; i < rows; ++i) {
    result.rows.push_back({tiny_example(static_cast<uint64_t>(i), length).input_ids, {0, length / 3}});
    result.tokens += length;
  }
  return result;
}

TEST(AcceleratorGptq, QuantisesAsTheCpuDoes) {
  TempDir dir;
  const c10::Device device = test_device();
  const nlohmann::json json = {{"architectures", {"LlamaForCausalLM"}},
                               {"model_type", "llama"},
                               {"vocab_size", kTinyVocab},
                               {"hidden_size", 64},
                               {"intermediate_size", 96},
                               {"num_hidden_layers", 2},
                               {"num_attention_heads", 4},
                               {"num_key_value_heads", 2},
                               {"max_position_embeddings", 640},
                               {"rms_norm_eps", 1e-5},
                               {"initializer_range", 0.1},
                               {"tie_word_embeddings", false}};
  fs::create_directories(dir / "dense");
  model::save_dense(model::new_model(model::parse_config(json, "test"), 1), dir / "dense", json, at::kHalf);
  const io::Checkpoint checkpoint(dir / "dense");
  const model::QuantizePlan plan = model::plan_quantization(checkpoint, {3, 32});
  model::GptqSettings settings;
  settings.solver.bits = 3;
  const auto run = [&](const char* name, c10::Device where, bool one_pass) {
    settings.device = where;
    settings.one_pass = one_pass;
    return model::gptq_checkpoint(checkpoint, plan, random_rows(6, 40), settings, dir / name, true);
  };
  const model::GptqReport cpu = run("cpu", c10::kCPU, false), other = run("device", device, false),
                          once = run("once", device, true);
  ASSERT_EQ(cpu.layers.size(), other.layers.size());
  // Sums in another order may turn a rounding, and the turned one the next block's inputs: the losses stay near each
  // other, as one code's turn is a thousandth of a matrix's.
  for (size_t i = 0; i < cpu.layers.size(); ++i) {
    EXPECT_NEAR(other.layers[i].loss, cpu.layers[i].loss, 0.03 * cpu.layers[i].loss) << cpu.layers[i].name;
    EXPECT_LT(other.layers[i].loss, other.layers[i].loss_round_to_nearest);
  }
  // Must differ: behind the first matrices one pass sees other inputs.
  EXPECT_NE(once.layers[4].loss, other.layers[4].loss);
  EXPECT_NO_THROW(model::load_model(dir / "device", {.compute = at::kFloat, .device = device}));
}

}  // namespace
}  // namespace qalora::test
