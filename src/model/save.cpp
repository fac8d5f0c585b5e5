#include <ATen/ATen.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "qalora/core/error.h"
#include "qalora/model/load.h"
#include "qalora/tensor/random.h"

namespace qalora::model {

namespace {

at::Tensor start_value(const ExpectedTensor& tensor, const LlamaConfig& config, uint64_t seed) {
  if (tensor.name.ends_with("norm.weight")) return at::ones(tensor.shape, at::kFloat);
  if (tensor.name.ends_with(".bias")) return at::zeros(tensor.shape, at::kFloat);
  // Each layer adds two terms to the residual stream; without the division its variance grows with the depth (GPT-2).
  const bool residual = tensor.name.ends_with("o_proj.weight") || tensor.name.ends_with("down_proj.weight");
  const double deviation =
      config.initializer_range / (residual ? std::sqrt(2.0 * static_cast<double>(config.layers)) : 1.0);
  return tensor::RandomStream(seed, "initial/" + tensor.name).normal_tensor(tensor.shape, deviation);
}

}  // namespace

std::map<std::string, at::Tensor> named_weights(const Llama& model) {
  std::map<std::string, at::Tensor> result = {{"model.embed_tokens.weight", model.embedding},
                                              {"model.norm.weight", model.final_norm}};
  if (!model.config.tied_head) result["lm_head.weight"] = model.head;
  for (size_t i = 0; i < model.layers.size(); ++i) {
    const Layer& layer = model.layers[i];
    const std::string prefix = layer_prefix(static_cast<int64_t>(i));
    for (const auto& norm : kLayerNorms) result[prefix + norm.name + ".weight"] = layer.*norm.member;
    for (const auto& norm : kHeadNorms) {
      if ((layer.*norm.member).defined()) result[prefix + norm.name + ".weight"] = layer.*norm.member;
    }
    for (const auto& projection : kProjections) {
      const Linear& linear = layer.*projection.member;
      result[linear.module() + ".weight"] = linear.dense();
      if (linear.bias.defined()) result[linear.module() + ".bias"] = linear.bias;
    }
  }
  return result;
}

Llama new_model(const LlamaConfig& config, uint64_t seed) {
  QALORA_REQUIRE(!config.quantization, UserError,
                 "a random start needs a dense configuration, this one has a 'quantization' entry");
  std::map<std::string, at::Tensor> start;
  for (const ExpectedTensor& tensor : expected_tensors(config))
    start[tensor.name] = start_value(tensor, config, seed).requires_grad_(true);
  Llama model;
  model.config = config;
  model.embedding = start.at("model.embed_tokens.weight");
  model.final_norm = start.at("model.norm.weight");
  model.head = config.tied_head ? model.embedding : start.at("lm_head.weight");
  for (int64_t i = 0; i < config.layers; ++i) {
    Layer& layer = model.layers.emplace_back();
    for (const auto& norm : kLayerNorms) layer.*norm.member = start.at(layer_prefix(i) + norm.name + ".weight");
    for (const auto& norm : kHeadNorms) {
      if (config.qk_norm) layer.*norm.member = start.at(layer_prefix(i) + norm.name + ".weight");
    }
    for (const auto& projection : kProjections) {
      const std::string module = layer_prefix(i) + projection.name;
      Linear& linear = layer.*projection.member = Linear(module, start.at(module + ".weight"));
      if (const auto bias = start.find(module + ".bias"); bias != start.end()) linear.bias = bias->second;
    }
  }
  return model;
}

void save_dense(const Llama& model, const fs::path& folder, const nlohmann::json& config_json, at::ScalarType dtype) {
  const std::map<std::string, at::Tensor> weights = named_weights(model);
  std::vector<io::PlannedTensor> plan;
  const std::vector<ExpectedTensor> expected = expected_tensors(model.config);
  for (const ExpectedTensor& tensor : expected) plan.push_back({tensor.name, io::dtype_of(dtype), tensor.shape});
  io::CheckpointWriter writer(folder, plan, {{"format", "pt"}});
  for (const ExpectedTensor& tensor : expected) {
    const at::Tensor value = weights.at(tensor.name).detach().to(dtype).contiguous();
    QALORA_REQUIRE(value.isfinite().all().item<bool>(), DivergedError, "tensor '", tensor.name, "' is not finite in ",
                   io::dtype_name(io::dtype_of(dtype)), "; nothing was saved over the last checkpoint");
    writer.write(tensor.name, value);
  }
  writer.finish();
  nlohmann::json config = derived_config(config_json, model.config, std::nullopt);
  config["torch_dtype"] = config["dtype"] = dtype == at::kHalf       ? "float16"
                                            : dtype == at::kBFloat16 ? "bfloat16"
                                                                     : "float32";
  io::write_json_file(folder / "config.json", config);
}

}  // namespace qalora::model
