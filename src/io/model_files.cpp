#include "qalora/io/model_files.h"

#include <set>

#include "qalora/core/error.h"
#include "qalora/core/format.h"
#include "qalora/io/foreign_quantization.h"
#include "qalora/io/gguf_checkpoint.h"
#include "qalora/io/gptq_view.h"
#include "qalora/io/json_file.h"
#include "qalora/io/meta_folder.h"
#include "qalora/io/safetensors_folder.h"
#include "qalora/io/torch_folder.h"

namespace qalora::io {
namespace {

// Why a folder without model.safetensors cannot be read, with what to do.
std::string explain_missing(const fs::path& folder) {
  std::set<std::string> found, others;
  for (const std::string& name : list_folder(folder)) {
    if (name == "adapter_model.safetensors" || name == "adapter_config.json") {
      return "this is an adapter, not a model; pass it with --adapter and its base with --model";
    }
    if (name.starts_with("consolidated."))
      return message("it holds ", name, ", but no ", MetaFolder::config_file(), "; fetch it too");
    if (name.ends_with(".pth") || name.ends_with(".ckpt")) found.insert("PyTorch weights (" + name + ")");
    if (name.ends_with(".npz") || name.ends_with(".msgpack") || name.ends_with(".h5") || name.ends_with(".onnx"))
      found.insert(name);
    if (name.ends_with(".safetensors")) others.insert(name);
  }
  if (found.empty()) found = others;
  if (found.empty()) return "expected model.safetensors, model.safetensors.index.json or a GGUF file in it";
  return message(
      "it holds ", join({found.begin(), found.end()}, ", "), ", which this version does not read; expected ",
      "model.safetensors or "
      "model.safetensors.index.json; convert the model to safetensors first (transformers: save_pretrained)");
}

bool is_there(const fs::path& path) { return kind_of(path) != fs::file_type::not_found; }

bool has_meta_config(const fs::path& model) { return !is_there(model / "config.json") && MetaFolder::exists(model); }

// What AutoGPTQ calls its weights: "gptq_model-4bit-128g" of gptq_model-4bit-128g.safetensors; "" when there are none.
// One of several is no better than another.
std::string gptq_stem(const fs::path& folder) {
  std::set<std::string> stems;
  for (const std::string& name : list_folder(folder)) {
    if (!name.starts_with("gptq_model-")) continue;
    for (const char* ending : {".safetensors.index.json", ".safetensors"}) {
      const std::string stem = name.ends_with(ending) ? name.substr(0, name.size() - std::string(ending).size()) : "";
      if (!stem.empty() && SafetensorsFolder::exists(folder, stem) && stem.find("-of-") == std::string::npos)
        stems.insert(stem);
    }
  }
  QALORA_REQUIRE(stems.size() <= 1, DataError, folder.string(), ": holds several models (",
                 join({stems.begin(), stems.end()}, ", "), "); keep one of them in it");
  return stems.empty() ? "" : *stems.begin();
}

}  // namespace

fs::path gguf_file_of(const fs::path& model) {
  const fs::file_type kind = kind_of(model);
  if (kind == fs::file_type::regular && model.extension() == ".gguf") return model;
  if (kind != fs::file_type::directory || SafetensorsFolder::exists(model) || !gptq_stem(model).empty() ||
      TorchFolder::exists(model) || MetaFolder::exists(model)) {
    return {};
  }
  std::vector<std::string> found;
  for (const std::string& name : list_folder(model)) {
    if (name.ends_with(".gguf")) found.push_back(name);
  }
  QALORA_REQUIRE(found.size() <= 1, DataError, model.string(), ": holds ", found.size(), " GGUF files (", found[0],
                 ", ", found[1], ", ..); name the one that is meant");
  return found.empty() ? fs::path() : model / found[0];
}

namespace {

nlohmann::json read_config_json(const fs::path& model) {
  if (has_meta_config(model)) return MetaFolder(model).config();
  const fs::path path = model / "config.json";
  QALORA_REQUIRE(is_there(path), DataError, path.string(), ": there is no such file");
  return read_json_file(path);
}

// Weights in GPTQ's or AWQ's layout become canonical ones, and the configuration says what they then are.
void view_foreign_quantization(const fs::path& model, ModelFiles& files) {
  if (!GptqView::is_packed(*files.tensors)) return;
  const ForeignQuantization quantization = read_foreign_quantization(model, files.config);
  const auto has_bias = [&](const std::string& module) { return architecture_has_bias(files.config, module); };
  auto view = std::make_unique<GptqView>(std::move(files.tensors), quantization, has_bias);
  if (files.config.is_object()) {
    files.config.erase("quantization_config");
    files.config["quantization"] = view->quantization();
  }
  files.tensors = std::move(view);
}

}  // namespace

ModelFiles open_model(const fs::path& model) {
  QALORA_REQUIRE(is_there(model), UserError, model.string(), ": there is no such file or folder");
  ModelFiles files;
  if (const fs::path gguf = gguf_file_of(model); !gguf.empty()) {
    auto source = std::make_unique<GgufCheckpoint>(gguf);
    files.config = source->config();
    files.config_name = gguf.string();
    files.tensors = std::move(source);
    return files;
  }
  QALORA_REQUIRE(kind_of(model) == fs::file_type::directory, UserError, model.string(),
                 ": is a file; expected the folder of a model or a GGUF file");
  if (SafetensorsFolder::exists(model)) {
    files.tensors = std::make_unique<SafetensorsFolder>(model);
  } else if (const std::string stem = gptq_stem(model); !stem.empty()) {
    files.tensors = std::make_unique<SafetensorsFolder>(model, stem);
  } else if (TorchFolder::exists(model)) {
    files.tensors = std::make_unique<TorchFolder>(model);
  } else if (MetaFolder::exists(model)) {
    files.tensors = std::make_unique<MetaFolder>(model);
  } else {
    throw DataError(message(model.string(), ": no weights that can be read: ", explain_missing(model)));
  }
  files.config_name = model_config_name(model);
  if (is_there(files.config_name)) files.config = read_config_json(model);
  view_foreign_quantization(model, files);
  return files;
}

nlohmann::json read_model_config(const fs::path& model) {
  if (const fs::path gguf = gguf_file_of(model); !gguf.empty()) return GgufCheckpoint(gguf).config();
  nlohmann::json config = read_config_json(model);
  // Which bits each module has is only known from its tensors.
  return is_foreign_quantised(model, config) ? open_model(model).config : config;
}

std::string model_config_name(const fs::path& model) {
  if (const fs::path gguf = gguf_file_of(model); !gguf.empty()) return gguf.string();
  return (model / (has_meta_config(model) ? MetaFolder::config_file() : "config.json")).string();
}

}  // namespace qalora::io
