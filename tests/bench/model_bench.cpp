#include "bench/model_bench.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <chrono>
#include <cmath>
#include <nlohmann/json.hpp>

#include "qalora/core/error.h"
#include "qalora/generate/decoder.h"
#include "qalora/tensor/accelerator.h"
#include "qalora/tensor/random.h"
#include "qalora/train/estimate.h"
#include "qalora/train/optimizer.h"

namespace qalora::bench {

namespace {

using nlohmann::json;

constexpr double kWeightDeviation = 0.02;

// Random numbers are made where they are needed; the tests' device has none of its own.
at::Tensor normal(at::IntArrayRef shape, double deviation, const at::TensorOptions& options) {
  if (options.device().is_cuda()) return at::randn(shape, options) * deviation;
  return tensor::RandomStream(1, "bench")
      .normal_tensor(shape, deviation)
      .to(options.device(), options.dtype().toScalarType());
}

quant::TiledWeight random_weight(int64_t out_features, int64_t in_features, const ModelBench& bench,
                                 c10::Device device) {
  const auto options = at::TensorOptions().device(device);
  quant::TiledWeight weight;
  weight.shape = {out_features, in_features, bench.group_size, bench.bits};
  weight.codes = device.is_cuda()
                     ? at::randint(INT32_MIN, INT32_MAX, {weight.shape.code_words()}, options.dtype(at::kInt))
                     : at::full({weight.shape.code_words()}, 0x2d7a613b, options.dtype(at::kInt));
  const double centre = (std::ldexp(1.0, bench.bits) - 1) / 2,
               scale = kWeightDeviation / std::sqrt((std::ldexp(1.0, 2 * bench.bits) - 1) / 12);
  weight.scales = at::full({weight.shape.group_floats()}, scale, options.dtype(at::kFloat));
  weight.offsets = at::full({weight.shape.group_floats()}, -scale * centre, options.dtype(at::kFloat));
  return weight;
}

void fill(model::Linear& linear, const std::string& name, int64_t out_features, int64_t in_features,
          const ModelBench& bench, c10::Device device) {
  const auto options = at::TensorOptions().device(device);
  if (bench.bits == 0) {
    linear = model::Linear(name, normal({out_features, in_features}, kWeightDeviation, options.dtype(at::kBFloat16)));
    return;
  }
  linear = model::Linear(name, at::Tensor());
  linear.set_tiled(random_weight(out_features, in_features, bench, device));
  const auto leaf = [&](at::IntArrayRef shape, double deviation) {
    return normal(shape, deviation, options.dtype(at::kFloat)).requires_grad_(true);
  };
  linear.adapter = std::make_shared<model::Adapter>(
      model::Adapter{leaf({bench.rank, linear.groups()}, 0.01), leaf({out_features, bench.rank}, 0.001),
                     16.0 / static_cast<double>(bench.rank), io::Pooling::kSum, bench.group_size, 0});
}

model::Llama random_model(const ModelBench& bench, c10::Device device) {
  const model::LlamaConfig& c = bench.config;
  const auto half = at::TensorOptions().device(device).dtype(at::kBFloat16);
  model::Llama model;
  model.config = c;
  model.compute = at::kBFloat16;
  model.embedding = normal({c.vocab_size, c.hidden_size}, kWeightDeviation, half);
  model.head = normal({c.vocab_size, c.hidden_size}, kWeightDeviation, half);
  const auto norm = [&] { return at::ones({c.hidden_size}, half.dtype(at::kFloat)); };
  model.final_norm = norm();
  const int64_t q = c.heads * c.head_dim, kv = c.kv_heads * c.head_dim;
  for (int64_t i = 0; i < c.layers; ++i) {
    model::Layer layer;
    layer.attention_norm = norm(), layer.mlp_norm = norm();
    const std::string prefix = model::layer_prefix(i);
    fill(layer.q, prefix + "self_attn.q_proj", q, c.hidden_size, bench, device);
    fill(layer.k, prefix + "self_attn.k_proj", kv, c.hidden_size, bench, device);
    fill(layer.v, prefix + "self_attn.v_proj", kv, c.hidden_size, bench, device);
    fill(layer.o, prefix + "self_attn.o_proj", c.hidden_size, q, bench, device);
    fill(layer.gate, prefix + "mlp.gate_proj", c.intermediate_size, c.hidden_size, bench, device);
    fill(layer.up, prefix + "mlp.up_proj", c.intermediate_size, c.hidden_size, bench, device);
    fill(layer.down, prefix + "mlp.down_proj", c.hidden_size, c.intermediate_size, bench, device);
    layer.to(device);  // stacks q, k, v and gate, up
    model.layers.push_back(std::move(layer));
  }
  // A dense base: one trained number at the very front asks for the gradients of every input behind it.
  if (bench.bits == 0) model.layers.front().attention_norm.requires_grad_(true);
  return model;
}

// Examples of 40 to 500 tokens, most of them short, the last 40 % of each counted: what Alpaca looks like.
text::Batch packed_batch(const ModelBench& bench, uint64_t index) {
  tensor::RandomStream random(3, "lengths", index);
  std::vector<std::vector<text::Example>> rows(static_cast<size_t>(bench.rows));
  for (auto& row : rows) {
    int64_t left = bench.row_tokens;
    while (left > 1) {
      const double share = random.uniform();
      const int64_t length = std::min(left, static_cast<int64_t>(40 + 460 * share * share * share));
      text::Example example;
      for (int64_t i = 0; i < length; ++i) {
        const auto id = static_cast<int64_t>(random.below(static_cast<uint64_t>(bench.config.vocab_size)));
        example.input_ids.push_back(id);
        example.labels.push_back(i * 10 >= length * 6 ? id : text::kIgnore);
      }
      row.push_back(std::move(example));
      left -= length;
    }
  }
  return text::pack_batch(rows, bench.row_tokens);
}

std::vector<train::Parameter> parameters_of(model::Llama& model) {
  std::vector<train::Parameter> result;
  for (model::Linear* linear : model.linears()) {
    if (!linear->adapter) continue;
    result.push_back({linear->module() + ".lora_A.weight", linear->adapter->a});
    result.push_back({linear->module() + ".lora_B.weight", linear->adapter->b});
  }
  if (result.empty()) result.push_back({"norm", model.layers.front().attention_norm, /*decays=*/false});
  return result;
}

// Runs one step -> its tokens.
int64_t step(model::Llama& model, train::AdamW& optimizer, const ModelBench& bench, uint64_t index) {
  model::ForwardOptions options;
  options.recompute = bench.recompute;
  options.dropout.training = true;
  int64_t tokens = 0;
  for (int64_t i = 0; i < bench.micro_batches; ++i) {
    const text::Batch batch = packed_batch(bench, index * 64 + static_cast<uint64_t>(i));
    (model.loss_sum(model.forward(batch, options), batch.targets.reshape({-1})) /
     static_cast<double>(batch.trained_tokens))
        .backward();
    tokens += batch.real_tokens;
  }
  optimizer.clip(optimizer.gradient_norm(), 0.3);
  optimizer.step(2e-5);
  optimizer.zero_grad();
  return tokens;
}

uint64_t estimated_bytes(const ModelBench& bench, const model::Llama& model, int64_t trained, c10::Device device) {
  train::TrainConfig config;
  config.rank = bench.rank;
  config.gradient_checkpointing = bench.recompute != model::Recompute::kNothing;
  config.recompute = bench.recompute == model::Recompute::kMlp ? "mlp" : "layer";
  train::Workload workload{model.config, at::kBFloat16, model.weight_bytes(), trained, device};
  workload.model.quantization = model::QuantizationConfig{.bits = bench.bits, .group_size = bench.group_size};
  return train::estimate_memory(workload, config, bench.rows, bench.row_tokens).total();
}

double decode_speed(model::Llama& model, int64_t tokens, c10::Device device) {
  const c10::AutoGradMode no_gradients(false);
  generate::Decoder decoder(model);
  decoder.next({1, 2, 3, 4, 5, 6, 7, 8});
  for (int64_t i = 0; i < 3; ++i) decoder.next({i});  // warms up and records
  tensor::accelerator()->synchronize(device.index());
  const auto start = std::chrono::steady_clock::now();
  int64_t id = 1;
  for (int64_t i = 0; i < tokens; ++i) id = decoder.next({id}).argmax().item<int64_t>();
  return static_cast<double>(tokens) / std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

model::LlamaConfig llama_shape(int64_t billions) {
  model::LlamaConfig c;
  c.model_type = "llama";
  c.vocab_size = 32000;
  c.head_dim = 128;
  c.context_length = 4096;
  c.norm_eps = 1e-5;
  const auto set = [&](int64_t hidden, int64_t intermediate, int64_t layers, int64_t heads, int64_t kv_heads) {
    c.hidden_size = hidden, c.intermediate_size = intermediate, c.layers = layers, c.heads = heads,
    c.kv_heads = kv_heads;
  };
  if (billions == 7) set(4096, 11008, 32, 32, 32);
  if (billions == 13) set(5120, 13824, 40, 40, 40);
  if (billions == 70) set(8192, 28672, 80, 64, 8);
  QALORA_CHECK(c.hidden_size > 0, "a shape of ", billions, "B");
  return c;
}

json run_model_bench(const ModelBench& bench, c10::Device device) {
  const tensor::Accelerator& accelerator = *tensor::accelerator();
  model::Llama model = random_model(bench, device);
  const std::vector<train::Parameter> parameters = parameters_of(model);
  int64_t trained = 0;
  for (const train::Parameter& parameter : parameters) trained += parameter.value.numel();
  json result = {{"bits", bench.bits},
                 {"rows", bench.rows},
                 {"row_tokens", bench.row_tokens},
                 {"micro_batches", bench.micro_batches}};
  if (bench.steps > 0) {
    train::AdamW optimizer(parameters, {});
    step(model, optimizer, bench, 0);
    accelerator.synchronize(device.index());
    const auto start = std::chrono::steady_clock::now();
    int64_t tokens = 0;
    for (int64_t i = 0; i < bench.steps; ++i) tokens += step(model, optimizer, bench, static_cast<uint64_t>(i + 1));
    accelerator.synchronize(device.index());
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    result["seconds_per_step"] = seconds / static_cast<double>(bench.steps);
    result["tokens_per_second"] = static_cast<double>(tokens) / seconds;
    result["peak_bytes"] = accelerator.memory(device.index()).peak;
    if (bench.bits > 0) result["estimated_bytes"] = estimated_bytes(bench, model, trained, device);
  }
  if (bench.decode_tokens > 0) result["decode_tokens_per_second"] = decode_speed(model, bench.decode_tokens, device);
  return result;
}

}  // namespace qalora::bench
