#include <algorithm>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "explain_kernels.h"
#include "inspect_file.h"
#include "inspect_gguf.h"
#include "inspect_model.h"
#include "inspect_table.h"
#include "qalora/cli/command.h"
#include "qalora/core/error.h"
#include "qalora/core/format.h"
#include "qalora/core/log.h"
#include "qalora/eval/mmlu_data.h"
#include "qalora/io/adapter_file.h"
#include "qalora/io/checkpoint.h"
#include "qalora/io/meta_folder.h"
#include "qalora/io/model_files.h"
#include "qalora/io/torch_file.h"
#include "qalora/tensor/accelerator.h"
#include "qalora/text/tokenizer.h"

namespace qalora::cli {
namespace {

using nlohmann::json;

constexpr const char* kExamples =
    "Examples:\n"
    "  qalora inspect llama-7b-int4\n"
    "  qalora inspect llama-7b-int4 --explain-kernels\n"
    "  qalora inspect run/checkpoints/step-500/optimizer.safetensors --json\n";

struct InspectOptions {
  std::shared_ptr<CommonOptions> common;
  std::string path;
  bool explain_kernels = false;
};

json inspect_run(const fs::path& folder) {
  json result = {{"kind", "run"}, {"path", folder.string()}};
  std::vector<std::string> checkpoints;
  if (fs::is_directory(folder / "checkpoints")) {
    for (const auto& entry : fs::directory_iterator(folder / "checkpoints"))
      checkpoints.push_back(entry.path().filename().string());
  }
  std::sort(checkpoints.begin(), checkpoints.end(), [](const auto& a, const auto& b) {
    return std::pair(a.size(), a) < std::pair(b.size(), b);
  });  // step-9 before step-10
  result["checkpoints"] = checkpoints;
  if (fs::exists(folder / "metrics.jsonl")) result["metrics"] = inspect_file(folder / "metrics.jsonl");
  if (fs::exists(folder / "model")) {
    result["model"] = inspect_checkpoint(folder / "model");
  } else if (fs::exists(folder / "adapter") || !checkpoints.empty()) {
    result["adapter"] = inspect_adapter(io::find_adapter(folder));
  }
  for (const char* part : {"adapter", "model"}) {
    if (!result.contains(part)) continue;
    for (const char* key : {"architecture", "parameters", "bytes", "bits_per_weight", "tensors"})
      result[key] = result[part][key];
    for (const char* key : {"tensors", "tokenizer_problem"}) result[part].erase(key);
  }
  return result;
}

// place: a folder, or a tokenizer.model under another name
json inspect_tokenizer(const fs::path& place) {
  const text::Tokenizer tokenizer(place);
  return {{"kind", "tokenizer"},
          {"path", place.string()},
          {"model", tokenizer_kind(tokenizer)},
          {"vocab_size", tokenizer.vocab_size()},
          {"bos_id", tokenizer.bos_id()},
          {"eos_id", tokenizer.eos_id()},
          {"stop_ids", tokenizer.stop_ids()},
          {"adds_bos", tokenizer.adds_bos()},
          {"adds_eos", tokenizer.adds_eos()},
          {"legacy", tokenizer.legacy()},
          {"chat_template", !tokenizer.chat_template().empty()},
          {"fingerprint", tokenizer.fingerprint()}};
}

json inspect_mmlu(const fs::path& folder) {
  json result = {{"kind", "mmlu"}, {"path", folder.string()}, {"dev", fs::exists(folder / "dev")}};
  for (const char* split : {"test", "val"}) {
    if (!fs::exists(folder / split)) continue;
    const auto subjects = eval::read_mmlu({.data = folder, .shots = 0, .split = split});
    size_t questions = 0;
    for (const auto& subject : subjects) questions += subject.questions.size();
    const bool main = !result.contains("questions");
    result[main ? "subjects" : std::string(split) + "_subjects"] = subjects.size();
    result[main ? "questions" : std::string(split) + "_questions"] = questions;
  }
  return result;
}

json inspect_folder(const fs::path& folder) {
  const auto has = [&](const char* name) { return fs::exists(folder / name); };
  if (has("adapter_config.json")) return inspect_adapter(folder);
  if (has("config.toml") || has("checkpoints")) return inspect_run(folder);
  if (has("config.json") || has("model.safetensors") || has("model.safetensors.index.json"))
    return inspect_checkpoint(folder);
  if (io::MetaFolder::exists(folder)) return inspect_checkpoint(folder);
  if (const fs::path gguf = io::gguf_file_of(folder); !gguf.empty()) return inspect_gguf(gguf);
  if (has("dev") && (has("test") || has("val"))) return inspect_mmlu(folder);
  if (text::Tokenizer::exists(folder)) return inspect_tokenizer(folder);
  throw DataError(
      message(folder.string(),
              ": nothing known in this folder; expected a checkpoint (config.json), an adapter "
              "(adapter_config.json), a run (config.toml), MMLU (dev/ and test/) or a tokenizer (tokenizer.model, "
              "tokenizer.json)"));
}

// By its ending, or by what is in it.
bool is_torch(const fs::path& path) {
  const std::string extension = path.extension().string();
  if (extension == ".bin" || extension == ".pt" || extension == ".pth") return true;
  std::ifstream in(path, std::ios::binary);
  char start[32] = {};
  in.read(start, sizeof start);
  return io::TorchFile::looks_like({start, static_cast<size_t>(in.gcount())});
}

// A file that stands for its folder, else what it is by itself.
json inspect_any(const fs::path& path) {
  if (fs::is_directory(path)) return inspect_folder(path);
  const std::string name = path.filename().string();
  const fs::path folder = path.has_parent_path() ? path.parent_path() : fs::path(".");
  if (name == "config.json" || name.ends_with(".index.json") || name == "params.json" || name == "adapter_config.json")
    return inspect_folder(folder);
  if (name == "tokenizer.model" || name == "tokenizer.json") return inspect_tokenizer(folder);
  if (path.extension() == ".model") return inspect_tokenizer(path);
  if (path.extension() == ".safetensors") return inspect_safetensors(path);
  if (is_torch(path)) return inspect_torch(path);
  if (path.extension() == ".gguf") return inspect_gguf(path);
  return inspect_file(path);
}

// Of the device that computes here, or of the newest that this program is built for.
int architecture_here(c10::Device device) {
  constexpr int kNewest = 90;
  return device.is_cpu() ? kNewest : tensor::accelerator()->properties(device.index()).architecture;
}

void run_explanation(const InspectOptions& options, const fs::path& path) {
  const json document =
      explain_kernels(fs::is_directory(path) ? path : path.parent_path(), architecture_here(options.common->where));
  return options.common->json ? print_json(document) : print(explain_kernels_text(document));
}

void run(InspectOptions& options) {
  options.common->computes = options.explain_kernels;
  apply_common(*options.common);
  const fs::path path = options.path;
  require_input(path, "PATH");
  if (options.explain_kernels) return run_explanation(options, path);
  json document;
  try {
    document = inspect_any(path);
  } catch (const fs::filesystem_error& error) {  // a folder that may not be read
    throw DataError(message(error.path1().string(), ": ", error.code().message()));
  }
  if (document.contains("tokenizer_problem")) log::warn(document["tokenizer_problem"].get<std::string>());
  if (options.common->json) {
    print_json(document);
  } else {
    print(inspect_text(document));
  }
}

}  // namespace

Command make_inspect(CLI::App& root) {
  CLI::App* app = root.add_subcommand(
      "inspect", "Show what is in a file or folder: model, adapter, run, tokenizer, data, configuration");
  auto options = std::make_shared<InspectOptions>();
  app->footer(kExamples);
  app->add_option("path", options->path, "file or folder")->required();
  app->add_flag("--explain-kernels", options->explain_kernels,
                "of a quantised checkpoint: which GPU kernel serves how many rows, and why");
  options->common = add_common(*app, kComputes);
  options->common->computes = false;  // the flags are there, but headers are all it reads
  return {app, [options] { run(*options); }};
}

}  // namespace qalora::cli
