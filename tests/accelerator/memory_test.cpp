// What a run says that it will need on a device, against what it takes.
#include <gtest/gtest.h>

#include "accelerator/tiny_model.h"
#include "qalora/train/estimate.h"
#include "qalora/train/optimizer.h"

namespace qalora::test {
namespace {

struct Measured {
  uint64_t peak = 0, estimated = 0;
  double ratio() const { return static_cast<double>(estimated) / static_cast<double>(peak); }
};

// LibTorch's composed attention, which the fake device runs, keeps q, k, v and the probabilities in f32 where a GPU's
// kernels keep q, k, v and the output in 16 bits and one number a row.
uint64_t kept_by_composed_attention(const model::LlamaConfig& c, int64_t rows, int64_t length,
                                    model::Recompute recompute) {
  const int64_t hidden = c.hidden_size;
  return static_cast<uint64_t>(rows * length * (recompute == model::Recompute::kLayer ? 1 : c.layers) *
                               (4 * 3 * hidden - 2 * 4 * hidden + 4 * c.heads * (length - 1)));
}

// One step of `rows` rows of `length` tokens in bf16, its peak beside the estimate (without what is left to CUDA's
// libraries).
Measured measure(const model::LlamaConfig& config, int64_t rows, int64_t length, model::Recompute recompute) {
  const c10::Device fake = use_fake_accelerator();
  const uint64_t before = fake_statistics().used_bytes;
  reset_fake_statistics();
  const TinyOptions options;
  model::Llama model = tiny_model(fake, at::kBFloat16, options, config);
  train::TrainConfig c;
  c.rank = kTinyRank;
  c.gradient_checkpointing = recompute != model::Recompute::kNothing;
  c.recompute = recompute == model::Recompute::kMlp ? "mlp" : "layer";
  std::vector<train::Parameter> parameters;
  for (model::Linear* linear : model.linears()) {
    parameters.push_back({linear->module() + ".a", linear->adapter->a});
    parameters.push_back({linear->module() + ".b", linear->adapter->b});
  }
  int64_t trained = 0;
  for (const train::Parameter& parameter : parameters) trained += parameter.value.numel();
  train::AdamW optimizer(parameters, {});
  std::vector<text::Example> examples;
  for (int64_t row = 0; row < rows; ++row) examples.push_back(tiny_example(static_cast<uint64_t>(row), length));
  const text::Batch batch = text::pad_batch(examples);
  model::ForwardOptions forward;
  forward.recompute = recompute;
  forward.dropout.training = true;
  model.loss_sum(model.forward(batch, forward), batch.targets.reshape({-1})).backward();
  optimizer.step(1e-3);
  train::Workload workload{model.config, at::kBFloat16, model.weight_bytes(), trained, fake};
  workload.model.quantization = model::QuantizationConfig{.bits = 4, .group_size = 32};
  const train::MemoryEstimate estimate = train::estimate_memory(workload, c, rows, length);
  return {fake_statistics().peak_bytes - before,
          estimate.total() - estimate.libraries + kept_by_composed_attention(config, rows, length, recompute)};
}

model::LlamaConfig config_of(int64_t hidden, int64_t intermediate, int64_t layers, int64_t vocabulary) {
  model::LlamaConfig config = tiny_config();
  config.hidden_size = hidden;
  config.intermediate_size = intermediate;
  config.layers = layers;
  config.heads = config.kv_heads = hidden / 32;
  config.head_dim = 32;
  config.vocab_size = vocabulary;
  return config;
}

TEST(DeviceMemory, EstimatesAreWithinATenthOfThePeak) {
  const model::LlamaConfig config = config_of(256, 704, 6, 128);
  uint64_t last = UINT64_MAX;
  for (const model::Recompute recompute :
       {model::Recompute::kNothing, model::Recompute::kMlp, model::Recompute::kLayer}) {
    const Measured deep = measure(config, 32, 16, recompute);
    EXPECT_NEAR(deep.ratio(), 1, 0.1) << deep.estimated << " of " << deep.peak << ", recompute "
                                      << static_cast<int>(recompute);
    EXPECT_LT(deep.peak, last);
    last = deep.peak;
  }
  const Measured wordy =
      measure(config_of(128, 352, 2, 8000), 32, 16, model::Recompute::kNothing);  // the logits decide
  EXPECT_NEAR(wordy.ratio(), 1, 0.1) << wordy.estimated << " of " << wordy.peak;
}

}  // namespace
}  // namespace qalora::test
