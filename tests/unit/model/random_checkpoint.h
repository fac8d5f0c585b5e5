// Checkpoints of random weights in a folder: dense, quantised, and an adapter that fits.
#pragma once

#include <ATen/ATen.h>

#include <functional>
#include <map>
#include <nlohmann/json.hpp>

#include "qalora/model/load.h"
#include "qalora/model/quantize_checkpoint.h"
#include "qalora/quant/adapter.h"
#include "qalora/tensor/random.h"
#include "support/support.h"

namespace qalora::test {

inline nlohmann::json random_config_json() {
  return {{"architectures", {"LlamaForCausalLM"}},
          {"model_type", "llama"},
          {"vocab_size", 400},
          {"hidden_size", 64},
          {"intermediate_size", 160},
          {"num_hidden_layers", 2},
          {"num_attention_heads", 4},
          {"num_key_value_heads", 2},
          {"max_position_embeddings", 128},
          {"rms_norm_eps", 1e-5},
          {"initializer_range", 0.08},
          {"tie_word_embeddings", false},
          {"torch_dtype", "float16"}};
}

inline void write_random_dense(const fs::path& folder, const nlohmann::json& json = random_config_json(),
                               uint64_t seed = 5) {
  fs::create_directories(folder);
  const model::LlamaConfig config = model::parse_config(json, "test");
  model::save_dense(model::new_model(config, seed), folder, json, at::kHalf);
}

inline std::vector<model::QuantizedLayer> quantize_to(const fs::path& dense, const fs::path& out, int bits,
                                                      int64_t group_size) {
  const io::Checkpoint checkpoint(dense);
  return model::quantize_checkpoint(checkpoint, model::plan_quantization(checkpoint, {bits, group_size}), out,
                                    /*replace=*/false);
}

// Every linear layer gets an adapter with a B of this deviation, as training leaves it.
inline io::AdapterFile random_adapter(const fs::path& base, io::Pooling pooling, double deviation, uint64_t seed = 11) {
  const model::LlamaConfig config = model::read_config(base);
  io::AdapterConfig settings;
  settings.rank = 4;
  settings.alpha = 8;
  settings.scaling = 2;
  settings.pooling = pooling;
  const bool pooled = pooling != io::Pooling::kNone;
  settings.group_size = pooled ? config.quantization->group_size : 0;
  settings.targets = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"};
  settings.base_fingerprint = io::base_fingerprint(io::Checkpoint(base));
  settings.base_state_fingerprint = io::base_state_fingerprint(io::Checkpoint(base));
  std::vector<quant::LinearShape> shapes;
  for (const auto& tensor : model::expected_tensors(config)) {
    if (!tensor.linear) continue;
    const int64_t in_features = tensor.shape[1];
    const int64_t group_size = !pooled                                   ? 1
                               : settings.group_size == quant::kWholeRow ? in_features
                                                                         : settings.group_size;
    shapes.push_back({tensor.name.substr(0, tensor.name.rfind('.')), tensor.shape[0], in_features,
                      (in_features + group_size - 1) / group_size});
  }
  io::AdapterFile adapter = quant::new_adapter(settings, shapes, seed);
  for (auto& [module, weights] : adapter.modules) {
    weights.b = tensor::RandomStream(seed, "b " + module).normal_tensor(weights.b.sizes(), deviation);
  }
  return adapter;
}

// The checkpoint with one tensor replaced or added (undefined: removed). i32 in the place of packed codes is written as
// u32.
inline void rewrite(const fs::path& folder, const std::string& name, const at::Tensor& value) {
  std::vector<io::PlannedTensor> plan;
  std::map<std::string, at::Tensor> tensors;
  const io::SafetensorsFile file(folder / "model.safetensors");
  for (const auto& [key, info] : file.tensors()) {
    tensors[key] = file.read(key);
    if (key != name) plan.push_back({key, info.dtype, info.shape});
  }
  if (value.defined()) {
    const bool codes =
        value.scalar_type() == at::kInt && tensors.contains(name) && file.tensors().at(name).dtype == io::Dtype::kU32;
    plan.push_back({name, codes ? io::Dtype::kU32 : io::dtype_of(value.scalar_type()), value.sizes().vec()});
    tensors[name] = value;
  }
  io::CheckpointWriter writer(folder, plan, {});
  for (const io::PlannedTensor& tensor : plan) writer.write(tensor.name, tensors.at(tensor.name));
  writer.finish();
}

// The text of the error of type E that `act` must throw.
template <typename E>
std::string refusal(const std::function<void()>& act) {
  try {
    act();
  } catch (const E& error) {
    return error.what();
  }
  ADD_FAILURE() << "nothing was refused";
  return "";
}

inline void expect_part(const std::string& text, const std::string& part) {
  EXPECT_NE(text.find(part), std::string::npos) << "'" << part << "' is not in: " << text;
}

inline void write_adapter_to(const fs::path& folder, const io::AdapterFile& adapter) {
  fs::create_directories(folder);
  io::write_adapter(folder, adapter);
}

}  // namespace qalora::test
