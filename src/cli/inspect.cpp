#include <algorithm>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "inspect_model.h"
#include "qalora/cli/command.h"
#include "qalora/cli/toml.h"
#include "qalora/core/error.h"
#include "qalora/core/format.h"
#include "qalora/eval/choice.h"
#include "qalora/eval/mmlu_data.h"
#include "qalora/io/adapter_file.h"
#include "qalora/io/checkpoint.h"
#include "qalora/text/dataset.h"
#include "qalora/text/tokenizer.h"

namespace qalora::cli {
namespace {

using nlohmann::json;

struct InspectOptions {
  std::shared_ptr<CommonOptions> common;
  std::string path;
};

// The first bytes of a file: enough to tell what it is.
std::string beginning(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  std::string bytes(256, '\0');
  in.read(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  bytes.resize(static_cast<size_t>(in.gcount()));
  return bytes;
}

json inspect_metrics(const fs::path& path) {
  std::ifstream in(path);
  QALORA_REQUIRE(in.good(), DataError, path.string(), ": cannot be read");
  json events = json::object(), last_step;
  int64_t number = 0;
  for (std::string line; std::getline(in, line);) {
    ++number;
    const json event = json::parse(line, nullptr, /*allow_exceptions=*/false);
    // A crash may leave half of the last line.
    if (event.is_discarded() && in.peek() == std::char_traits<char>::eof()) break;
    QALORA_REQUIRE(event.is_object() && event.contains("event") && event["event"].is_string(), DataError, path.string(), ":", number,
                   ": not a step event of a run");
    const auto name = event["event"].get<std::string>();
    events[name] = events.value(name, 0) + 1;
    if (name == "step") last_step = event;
  }
  return {{"kind", "metrics"}, {"path", path.string()}, {"events", events}, {"last_step", last_step}};
}

json inspect_run(const fs::path& folder) {
  json result = {{"kind", "run"}, {"path", folder.string()}};
  std::vector<std::string> checkpoints;
  if (fs::is_directory(folder / "checkpoints")) {
    for (const auto& entry : fs::directory_iterator(folder / "checkpoints")) checkpoints.push_back(entry.path().filename().string());
  }
  std::sort(checkpoints.begin(), checkpoints.end(),
            [](const auto& a, const auto& b) { return std::pair(a.size(), a) < std::pair(b.size(), b); });  // step-9 before step-10
  result["checkpoints"] = checkpoints;
  if (fs::exists(folder / "metrics.jsonl")) result["metrics"] = inspect_metrics(folder / "metrics.jsonl");
  if (fs::exists(folder / "model")) {
    result["model"] = inspect_checkpoint(folder / "model");
  } else if (fs::exists(folder / "adapter") || !checkpoints.empty()) {
    result["adapter"] = inspect_adapter(io::find_adapter(folder));
  }
  for (const char* part : {"adapter", "model"}) {
    if (!result.contains(part)) continue;
    for (const char* key : {"architecture", "parameters", "bytes", "bits_per_weight", "tensors"}) result[key] = result[part][key];
    result[part].erase("tensors");
  }
  return result;
}

json inspect_tokenizer(const fs::path& folder) {
  const text::Tokenizer tokenizer(folder);
  return {{"kind", "tokenizer"},
          {"path", folder.string()},
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

json inspect_config(const fs::path& path) {
  json values = json::object();
  try {
    for (const TomlEntry& entry : parse_toml(read_text_file(path), path.string())) {
      values[entry.section.empty() ? entry.key : entry.section + "." + entry.key] = toml_plain(entry.value);
    }
  } catch (const UserError& error) {  // here the file is what is looked at, not what the person asks for
    throw DataError(error.what());
  }
  return {{"kind", "configuration"}, {"path", path.string()}, {"keys", values}};
}

json inspect_state(const fs::path& path) {
  const json state = io::read_json_file(path);
  QALORA_REQUIRE(state.is_object() && state.contains("step"), DataError, path.string(), ": not a training state, there is no 'step' in it");
  return {{"kind", "training state"}, {"path", path.string()}, {"state", state}};
}

json inspect_mmlu(const fs::path& folder) {
  const auto subjects = eval::read_mmlu({.data = folder});
  size_t questions = 0;
  for (const auto& subject : subjects) questions += subject.questions.size();
  return {{"kind", "mmlu"}, {"path", folder.string()}, {"subjects", subjects.size()}, {"questions", questions}};
}

json inspect_data(const fs::path& path, const std::string& start) {
  const std::string first_line = start.substr(0, start.find('\n'));
  if (start.starts_with("{") && first_line.find("\"choices\"") != std::string::npos && first_line.find("\"context\"") != std::string::npos) {
    return {{"kind", "multiple choice"}, {"path", path.string()}, {"questions", eval::read_choices(path, 0).size()}};
  }
  const text::Dataset dataset(path, text::DataFormat::kAuto, /*skip_bad_records=*/true);
  json bad = json::array();
  for (const auto& record : dataset.bad()) bad.push_back({{"line", record.line}, {"reason", record.reason}});
  return {{"kind", "data set"},        {"path", path.string()},          {"format", text::data_format_name(dataset.format())},
          {"records", dataset.size()}, {"bytes", fs::file_size(path)}, {"bad_records", bad},
          {"fingerprint", dataset.fingerprint()}};
}

json inspect_folder(const fs::path& folder) {
  const auto has = [&](const char* name) { return fs::exists(folder / name); };
  if (has("adapter_config.json")) return inspect_adapter(folder);
  if (has("config.toml") || has("checkpoints")) return inspect_run(folder);
  if (has("config.json") || has("model.safetensors") || has("model.safetensors.index.json")) return inspect_checkpoint(folder);
  if (has("dev") && has("test")) return inspect_mmlu(folder);
  if (has("tokenizer.model")) return inspect_tokenizer(folder);
  throw DataError(message(folder.string(), ": nothing known in this folder; expected a checkpoint (config.json), an adapter "
                          "(adapter_config.json), a run (config.toml), MMLU (dev/ and test/) or a tokenizer (tokenizer.model)"));
}

json inspect_file(const fs::path& path) {
  const std::string name = path.filename().string(), extension = path.extension().string(), start = beginning(path);
  const fs::path folder = path.has_parent_path() ? path.parent_path() : fs::path(".");
  if (name == "config.json" || name == "model.safetensors.index.json" || name == "adapter_config.json") return inspect_folder(folder);
  if (extension == ".safetensors") return inspect_safetensors(path);
  if (name == "tokenizer.model") return inspect_tokenizer(folder);
  if (name == "state.json") return inspect_state(path);
  if (extension == ".toml") return inspect_config(path);
  if (name == "metrics.jsonl" || start.starts_with("{\"event\"")) return inspect_metrics(path);
  const bool data = extension == ".json" || extension == ".jsonl" || extension == ".csv" || extension == ".txt";
  if (data) return inspect_data(path, start);
  QALORA_REQUIRE(extension != ".model", DataError, path.string(), ": a tokenizer is read under the name tokenizer.model, in its own folder");
  QALORA_REQUIRE(!start.starts_with("GGUF"), DataError, path.string(), ": a GGUF file, which this version does not read");
  const bool pickle = start.starts_with("PK\x03\x04") || start.starts_with("\x80\x02");
  QALORA_REQUIRE(!pickle, DataError, path.string(), ": probably a PyTorch checkpoint, which this version does not read; convert it to safetensors");
  throw DataError(message(path.string(), ": not a kind of file that is known here; expected .safetensors, tokenizer.model, .toml, "
                          "metrics.jsonl, or data (.json, .jsonl, .csv, .txt)"));
}

std::string cell(const std::string& key, const json& value) {
  if (value.is_string()) return value.get<std::string>();
  if (value.is_number_integer() && key.find("bytes") != std::string::npos) return format_bytes(value.get<uint64_t>());
  if (value.is_number_integer() && value.get<int64_t>() >= 10000) return format_count(value.get<int64_t>());
  if (value.is_number_float()) return message(value.get<double>());  // six digits are enough to read
  return value.dump();
}

// One row a fact; objects one level down become "outer, inner".
void add_rows(std::vector<std::pair<std::string, std::string>>& rows, const std::string& prefix, const json& object) {
  for (const auto& [key, value] : object.items()) {
    if (key == "kind" || key == "tensors" || key == "path") continue;
    std::string name = prefix + key;
    std::replace(name.begin(), name.end(), '_', ' ');
    if (value.is_object()) {
      add_rows(rows, (prefix.empty() ? key : prefix + key) + ", ", value);
    } else if (!value.is_null() && value != json::array()) {
      rows.emplace_back(name, cell(prefix + key, value));
    }
  }
}

void print_human(const json& document) {
  std::vector<std::pair<std::string, std::string>> rows;
  add_rows(rows, "", document);
  size_t width = 0;
  for (const auto& [name, value] : rows) width = std::max(width, name.size());
  std::string text = document["path"].get<std::string>() + ": " + document["kind"].get<std::string>() + "\n";
  for (const auto& [name, value] : rows) text += "  " + name + std::string(width + 2 - name.size(), ' ') + value + "\n";
  print(text);
  if (!document.contains("tensors")) return;
  std::vector<std::vector<std::string>> tensors = {{"tensor", "dtype", "shape"}};
  for (const auto& tensor : document["tensors"]) {
    std::string shape;
    for (const auto& size : tensor["shape"]) shape += (shape.empty() ? "" : " x ") + size.dump();
    tensors.push_back({tensor["name"].get<std::string>(), tensor["dtype"].get<std::string>(), shape.empty() ? "scalar" : shape});
  }
  print("\n" + format_table(tensors));
}

void run(InspectOptions& options) {
  apply_common(*options.common);
  const fs::path path = options.path;
  std::error_code error;
  QALORA_REQUIRE(fs::exists(path, error), UserError, path.string(), ": there is no such file or folder");
  const json document = fs::is_directory(path) ? inspect_folder(path) : inspect_file(path);
  if (options.common->json) {
    print_json(document);
  } else {
    print_human(document);
  }
}

}  // namespace

Command make_inspect(CLI::App& root) {
  CLI::App* app = root.add_subcommand("inspect", "What is in a file or folder: model, adapter, run, tokenizer, data, configuration");
  auto options = std::make_shared<InspectOptions>();
  app->add_option("path", options->path, "file or folder")->required();
  options->common = add_common(*app, 0);
  return {app, [options] { run(*options); }};
}

}  // namespace qalora::cli
