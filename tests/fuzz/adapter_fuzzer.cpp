// The input is an adapter_config.json; the tensors beside it are a fixed, tiny adapter.
#include <ATen/ATen.h>

#include "input.h"
#include "qalora/io/adapter_file.h"
#include "qalora/io/safetensors.h"

namespace {

const qalora::fuzz::InputFolder& folder() {
  static const qalora::fuzz::InputFolder made;
  static const bool ready = [] {
    const std::string module = "base_model.model.model.layers.0.self_attn.q_proj.";
    qalora::io::write_safetensors(made.path() / "adapter_model.safetensors", {{module + "lora_A.weight", at::zeros({2, 4})},
                                                                              {module + "lora_B.weight", at::zeros({8, 2})}});
    return true;
  }();
  (void)ready;
  return made;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  folder().put("adapter_config.json", qalora::fuzz::text(data, size));
  return qalora::fuzz::attempt([&] { qalora::io::read_adapter(folder().path()); });
}
