#include "inspect_file.h"

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <string>

#include "qalora/cli/toml.h"
#include "qalora/core/error.h"
#include "qalora/eval/choice.h"
#include "qalora/eval/json_lines.h"
#include "qalora/eval/mmlu_data.h"
#include "qalora/io/checkpoint.h"
#include "qalora/text/dataset.h"

namespace qalora::cli {
namespace {

using nlohmann::json;

constexpr std::streamsize kBeginning = 1 << 20;  // bytes that tell what a file is: one long record

std::string beginning(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  std::string bytes(static_cast<size_t>(kBeginning), '\0');
  in.read(bytes.data(), kBeginning);
  bytes.resize(static_cast<size_t>(in.gcount()));
  if (bytes.starts_with("\xEF\xBB\xBF")) bytes.erase(0, 3);
  bytes.erase(0, std::min(bytes.find_first_not_of(" \t\r\n"), bytes.size()));
  return bytes;
}

json entry(const char* kind, const fs::path& path) { return {{"kind", kind}, {"path", path.string()}}; }

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
    QALORA_REQUIRE(event.is_object() && event.contains("event") && event["event"].is_string(), DataError, path.string(),
                   ":", number, ": not a step event of a run");
    const auto name = event["event"].get<std::string>();
    events[name] = events.value(name, 0) + 1;
    if (name == "step") last_step = event;
  }
  return {{"kind", "metrics"}, {"path", path.string()}, {"events", events}, {"last_step", last_step}};
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
  QALORA_REQUIRE(state.is_object() && state.contains("step"), DataError, path.string(),
                 ": not a training state, there is no 'step' in it");
  return {{"kind", "training state"}, {"path", path.string()}, {"state", state}};
}

// --details of eval: how many answers there are and how many are right.
json inspect_answers(const fs::path& path) {
  json result = entry("answers", path);
  int64_t questions = 0, correct = 0;
  std::set<std::string> subjects;
  eval::read_json_lines(path, [&](const json& line, const std::string& where) {
    const bool good = line.contains("prediction") && line.contains("answer") && line.contains("scores");
    QALORA_REQUIRE(good, DataError, where,
                   ": expected \"scores\", \"prediction\" and \"answer\", as eval --details writes them");
    ++questions;
    correct += line["prediction"] == line["answer"] ? 1 : 0;
    if (line.contains("subject")) subjects.insert(eval::string_field(line, "subject", where));
    return true;
  });
  result["task"] = subjects.empty() ? "choice" : "mmlu";
  result["questions"] = questions;
  result["correct"] = correct;
  result["accuracy"] = static_cast<double>(correct) / static_cast<double>(questions);  // a first line was seen
  if (!subjects.empty()) result["subjects"] = subjects.size();
  return result;
}

json inspect_mmlu_lines(const fs::path& path) {
  const auto subjects = eval::read_mmlu({.data = path, .protocol = eval::Protocol::kQlora});
  json result = entry("mmlu questions", path);
  size_t questions = 0;
  int64_t shots = 0;
  for (const auto& subject : subjects) {
    questions += subject.questions.size();
    for (const auto& question : subject.questions) shots = std::max(shots, question.own_shots);
  }
  result.update({{"subjects", subjects.size()}, {"questions", questions}, {"shots", shots}});
  return result;
}

// Lists of whole numbers, as --token-ids takes them.
json inspect_ids(const fs::path& path) {
  const json ids = io::read_json_file(path);
  json result = entry("token ids", path);
  const json rows = ids.is_array() && !ids.empty() && ids[0].is_array() ? ids : json::array({ids});
  size_t tokens = 0;
  int64_t largest = -1;
  for (const json& row : rows) {
    QALORA_REQUIRE(row.is_array(), DataError, path.string(),
                   ": expected a list of token ids or a list of such lists, got ", row.type_name(), " among them");
    for (const json& id : row) {
      QALORA_REQUIRE(id.is_number_integer(), DataError, path.string(), ": expected token ids, got ", id.type_name());
      largest = std::max(largest, id.get<int64_t>());
    }
    tokens += row.size();
  }
  result.update({{"rows", rows.size()}, {"tokens", tokens}, {"largest_id", largest}});
  return result;
}

// The small JSON files beside a model, shown as they are.
json inspect_values(const fs::path& path, const char* kind) {
  json result = entry(kind, path);
  const json values = io::read_json_file(path);
  QALORA_REQUIRE(values.is_object(), DataError, path.string(), ": expected a JSON object, got ", values.type_name());
  result["values"] = values;
  return result;
}

json inspect_picture(const fs::path& path) {
  json result = entry("picture", path);
  result.update({{"format", "svg"}, {"bytes", fs::file_size(path)}});
  return result;
}

// --log-file: every line begins with a time, "2025-01-31 23:59:59  ".
bool is_log(const std::string& start) {
  constexpr std::string_view kTime = "0000-00-00 00:00:00  ";
  return start.size() >= kTime.size() &&
         std::equal(kTime.begin(), kTime.end(), start.begin(), [](char wanted, char found) {
           return wanted == '0' ? found >= '0' && found <= '9' : wanted == found;
         });
}

json inspect_log(const fs::path& path) {
  json result = entry("log", path);
  std::ifstream in(path);
  int64_t lines = 0;
  std::string first, last;
  for (std::string line; std::getline(in, line); ++lines) {
    if (lines == 0) first = line.substr(0, 19);
    if (is_log(line)) last = line.substr(0, 19);
  }
  result.update({{"lines", lines}, {"first", first}, {"last", last}});
  return result;
}

json inspect_data(const fs::path& path) {
  const text::Dataset dataset(path, text::DataFormat::kAuto, /*skip_bad_records=*/true);
  json bad = json::array();
  for (const auto& record : dataset.bad()) bad.push_back({{"line", record.line}, {"reason", record.reason}});
  json result = entry("data set", path);
  result.update({{"format", text::data_format_name(dataset.format())},
                 {"records", dataset.size()},
                 {"bytes", fs::file_size(path)},
                 {"bad_records", bad},
                 {"fingerprint", dataset.fingerprint()}});
  return result;
}

json inspect_choices(const fs::path& path) {
  json result = entry("multiple choice", path);
  result["questions"] = eval::read_choices(path, 0).size();
  return result;
}

// JSON, JSON Lines, CSV and text: told apart by the first record.
json inspect_records(const fs::path& path, const std::string& start) {
  const json first = json::parse(start.substr(0, start.find('\n')), nullptr, /*allow_exceptions=*/false);
  const auto has = [&](std::initializer_list<const char*> keys) {
    return first.is_object() &&
           std::all_of(keys.begin(), keys.end(), [&](const char* key) { return first.contains(key); });
  };
  if (has({"event"})) return inspect_metrics(path);
  if (has({"scores", "prediction", "answer"})) return inspect_answers(path);
  if (has({"context", "choices"})) return inspect_choices(path);
  if (has({"subject", "input", "output"})) return inspect_mmlu_lines(path);
  if (has({"task", "seconds"})) return inspect_values(path, "result");  // what eval --json printed
  const size_t inside = start.starts_with("[") ? start.find_first_not_of(" \t\r\n[") : std::string::npos;
  const bool ids =
      inside != std::string::npos && std::string_view("-0123456789").find(start[inside]) != std::string_view::npos;
  if (ids) return inspect_ids(path);
  return inspect_data(path);
}

bool is_mmlu_table(const std::string& name) {
  return name.ends_with("_test.csv") || name.ends_with("_val.csv") || name.ends_with("_dev.csv");
}

}  // namespace

json inspect_file(const fs::path& path) {
  const std::string name = path.filename().string(), extension = path.extension().string(), start = beginning(path);
  constexpr std::pair<const char*, const char*> kValues[] = {{"tokenizer_config.json", "tokenizer configuration"},
                                                             {"special_tokens_map.json", "special tokens"},
                                                             {"added_tokens.json", "added tokens"},
                                                             {"generation_config.json", "generation configuration"},
                                                             {"best.json", "best evaluation"}};
  for (const auto& [known, kind] : kValues) {
    if (name == known) return inspect_values(path, kind);
  }
  if (name == "state.json") return inspect_state(path);
  if (name == "metrics.jsonl") return inspect_metrics(path);
  if (extension == ".toml") return inspect_config(path);
  if (is_mmlu_table(name)) {
    json result = entry("mmlu questions", path);
    result["questions"] = eval::count_questions(path);
    return result;
  }
  if (start.starts_with("<svg") || (extension == ".svg" && start.starts_with("<?xml"))) return inspect_picture(path);
  const bool records = extension == ".json" || extension == ".jsonl" || extension == ".csv" || extension == ".txt";
  if (records) return inspect_records(path, start);
  if (is_log(start)) return inspect_log(path);
  QALORA_REQUIRE(!start.starts_with("GGUF"), DataError, path.string(),
                 ": a GGUF file; files are known by their ending, so rename it to .gguf");
  throw DataError(message(
      path.string(),
      ": not a kind of file that is known here; expected .safetensors, .gguf, .bin, .pt, .pth, tokenizer.model, .toml, .svg, "
      "metrics.jsonl, or data (.json, .jsonl, .csv, .txt)"));
}

}  // namespace qalora::cli
