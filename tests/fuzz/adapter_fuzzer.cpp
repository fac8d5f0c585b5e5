// The input is an adapter_config.json; the tensors beside it are a fixed, tiny adapter of layers with 8 inputs, A [2,
// 2] and B [8, 2]. What is read is fitted to a dense base and to quantised ones.
#include <ATen/ATen.h>

#include <nlohmann/json.hpp>

#include "input.h"
#include "qalora/core/log.h"
#include "qalora/io/adapter_file.h"
#include "qalora/io/safetensors.h"
#include "qalora/model/adapter_base.h"

namespace {

const qalora::fuzz::InputFolder& folder() {
  static const qalora::fuzz::InputFolder made;
  static const bool ready = [] {
    const std::string module = "base_model.model.model.layers.0.self_attn.q_proj.";
    qalora::io::write_safetensors(
        made.path() / "adapter_model.safetensors",
        {{module + "lora_A.weight", at::zeros({2, 2})}, {module + "lora_B.weight", at::zeros({8, 2})}});
    return true;
  }();
  (void)ready;
  return made;
}

std::vector<qalora::model::LlamaConfig> make_bases() {
  const nlohmann::json json = {
      {"model_type", "llama"},  {"vocab_size", 16},         {"hidden_size", 8},         {"intermediate_size", 8},
      {"num_hidden_layers", 1}, {"num_attention_heads", 2}, {"num_key_value_heads", 2}, {"max_position_embeddings", 16},
      {"rms_norm_eps", 1e-5}};
  qalora::log::Options quiet;  // a message an input otherwise
  quiet.level = qalora::log::Level::kQuiet;
  qalora::log::configure(quiet);
  std::vector<qalora::model::LlamaConfig> bases = {qalora::model::parse_config(json, "base")};
  for (const int64_t group_size : {2, 4, -1}) {  // finer than the adapter's groups, its own, a whole row
    bases.push_back(bases.front());
    bases.back().quantization = qalora::model::QuantizationConfig{.bits = 4, .group_size = group_size};
  }
  return bases;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const std::vector<qalora::model::LlamaConfig> bases = make_bases();
  folder().put("adapter_config.json", qalora::fuzz::text(data, size));
  return qalora::fuzz::attempt([&] {
    const qalora::io::AdapterFile read = qalora::io::read_adapter(folder().path());
    for (const auto& base : bases) {
      qalora::io::AdapterFile adapter = read;
      qalora::model::fit_to_base(adapter, base, "adapter");
    }
  });
}
