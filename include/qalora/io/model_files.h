// Which reader a model needs, by what lies there.
#pragma once

#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "qalora/io/tensor_source.h"

namespace qalora::io {

struct ModelFiles {
  std::unique_ptr<TensorSource> tensors;  // canonical (tensor_source.h)
  nlohmann::json config;    // in Hugging Face's terms; quantised: "quantization" as MLX has it. null: there is none
  std::string config_name;  // the file that it comes from, for messages
};

// model: a folder (safetensors, PyTorch, Meta's; GPTQ's and AWQ's layouts among them), or a single GGUF file or a
// folder with one. UserError when it is not there, DataError with what to do when nothing in it can be read.
ModelFiles open_model(const fs::path& model);

// The GGUF file that is meant: the path itself where it ends so, or the only one in a folder that holds no weights of
// another kind; else "".
fs::path gguf_file_of(const fs::path& model);

// The configuration alone; of a folder with config.json without opening its weights.
nlohmann::json read_model_config(const fs::path& model);
// The file that read_model_config takes it from, for messages.
std::string model_config_name(const fs::path& model);

}  // namespace qalora::io
