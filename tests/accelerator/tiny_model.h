// A small quantised decoder with an adapter on every linear layer, on the CPU or on the fake accelerator.
#pragma once

#include <ATen/ATen.h>

#include <memory>
#include <string>
#include <vector>

#include "accelerator/support.h"
#include "qalora/model/llama.h"
#include "qalora/model/load.h"
#include "qalora/quant/round_to_nearest.h"
#include "qalora/tensor/random.h"

namespace qalora::test {

// Where these models run: the fake device, or, in the program that tests/gpu builds of the same files, a GPU.
#ifdef QALORA_TEST_ON_GPU
c10::Device test_device();
#else
inline c10::Device test_device() { return use_fake_accelerator(); }
#endif

constexpr int64_t kTinyVocab = 97;
constexpr int64_t kTinyRank = 3;

struct TinyOptions {
  int bits = 4;
  int64_t group_size = 32;
  io::Pooling pooling = io::Pooling::kSum;
  double dropout = 0;
  bool adapters = true;
  bool mixed = false;   // v and up have groups twice as large
  bool sorted = false;  // the groups of o, gate and down are of inputs that do not lie side by side
};

inline model::LlamaConfig tiny_config() {
  model::LlamaConfig config;
  config.model_type = "llama";
  config.vocab_size = kTinyVocab;
  config.hidden_size = 64;
  config.intermediate_size = 96;
  config.layers = 2;
  config.heads = 4;
  config.kv_heads = 2;
  config.head_dim = 16;
  config.context_length = 640;
  config.norm_eps = 1e-5;
  config.initializer_range = 0.1;
  return config;
}

inline at::Tensor tiny_random(const std::string& purpose, at::IntArrayRef shape, double deviation) {
  return tensor::RandomStream(2, purpose).normal_tensor(shape, deviation);
}

inline int64_t group_size_of(const std::string& name, const TinyOptions& options) {
  const bool larger = options.mixed && (name.ends_with("v_proj") || name.ends_with("up_proj"));
  return larger ? 2 * options.group_size : options.group_size;
}

inline void attach(model::Linear& linear, const TinyOptions& options, c10::Device device) {
  const std::string name = linear.module();
  const double deviation = options.pooling == io::Pooling::kMean ? 0.5 : 0.1;  // a mean is smaller than a sum
  const auto leaf = [&](const std::string& part, at::IntArrayRef shape) {
    return tiny_random(part + name, shape, deviation).to(device).requires_grad_(true);
  };
  linear.adapter = std::make_shared<model::Adapter>(
      model::Adapter{leaf("a ", {kTinyRank, linear.groups()}), leaf("b ", {linear.out_features(), kTinyRank}),
                     /*scaling=*/0.5, options.pooling, group_size_of(name, options), options.dropout});
}

inline model::Llama tiny_model(c10::Device device, at::ScalarType compute, const TinyOptions& options = {},
                               const model::LlamaConfig& config = tiny_config()) {
  model::Llama model = model::new_model(config, 1);
  model.compute = compute;
  for (const auto& [name, value] : model::named_weights(model)) value.requires_grad_(false);
  for (model::Linear* linear : model.linears()) {
    const std::string name = linear->module();
    quant::PackedWeight weight =
        quant::round_to_nearest(name, linear->dense().detach(), options.bits, group_size_of(name, options)).weight;
    const bool sorted =
        options.sorted && (name.ends_with("o_proj") || name.ends_with("gate_proj") || name.ends_with("down_proj"));
    if (sorted)
      weight.input_order = tensor::RandomStream(3, "order " + name).normal_tensor({weight.in_features}, 1).argsort();
    *linear = model::Linear(name, std::move(weight));
  }
  model.to(device);
  if (!device.is_cpu()) model.head = model.head.to(compute);
  if (options.adapters) {
    for (model::Linear* linear : model.linears()) attach(*linear, options, device);
  }
  return model;
}

inline text::Example tiny_example(uint64_t index, int64_t length) {
  tensor::RandomStream random(7, "ids", index);
  text::Example result;
  for (int64_t i = 0; i < length; ++i) result.input_ids.push_back(static_cast<int64_t>(random.below(kTinyVocab)));
  result.labels = result.input_ids;
  return result;
}

// Largest difference as a share of the largest value.
inline double distance(const at::Tensor& a, const at::Tensor& b) {
  const at::Tensor x = a.cpu().to(at::kDouble), y = b.cpu().to(at::kDouble);
  return (x - y).abs().max().item<double>() / y.abs().max().item<double>();
}

// Of the whole: Euclidean.
inline double relative_error(const at::Tensor& a, const at::Tensor& b) {
  const at::Tensor x = a.detach().cpu().to(at::kDouble), y = b.detach().cpu().to(at::kDouble);
  return (x - y).norm().item<double>() / y.norm().item<double>();
}

}  // namespace qalora::test
