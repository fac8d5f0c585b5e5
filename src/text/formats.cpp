#include "formats.h"

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>

#include "blanks.h"
#include "qalora/core/error.h"
#include "qalora/core/format.h"
#include "qalora/text/batch.h"
#include "utf8.h"

namespace qalora::text {
namespace {

using nlohmann::json;

constexpr std::string_view kHuman = "<human>:", kBot = "<bot>:";

struct Name {
  DataFormat format;
  const char* name;
};
constexpr Name kNames[] = {{DataFormat::kAuto, "auto"},         {DataFormat::kAlpaca, "alpaca"},
                           {DataFormat::kFlan, "flan"},         {DataFormat::kSelfInstruct, "self-instruct"},
                           {DataFormat::kLongForm, "longform"}, {DataFormat::kChip2, "chip2"},
                           {DataFormat::kShareGpt, "sharegpt"}, {DataFormat::kMessages, "messages"},
                           {DataFormat::kText, "text"},         {DataFormat::kTokens, "tokens"}};

std::string_view trim(std::string_view text) {
  const auto first = text.find_first_not_of(kBlanks);
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(kBlanks) - first + 1);
}

const json& member(const json& record, const char* key) {
  const auto found = record.find(key);
  QALORA_REQUIRE(found != record.end(), DataError, "the key '", key, "' is missing; the record has ",
                 key_names(record));
  return *found;
}

const std::string& text_of(const json& record, const char* key) {
  const json& value = member(record, key);
  QALORA_REQUIRE(value.is_string(), DataError, "'", key, "' is ", value.type_name(), "; expected a string");
  return value.get_ref<const std::string&>();
}

std::string optional_text(const json& record, const char* key) {
  const auto found = record.find(key);
  if (found == record.end() || found->is_null()) return "";
  return text_of(record, key);
}

std::string answer_of(const json& record, const char* key) {
  const std::string& answer = text_of(record, key);
  QALORA_REQUIRE(!is_blank(answer), DataError, "the answer '", key, "' is empty");
  return answer;
}

Record exchange(std::string instruction, std::string input, std::string output) {
  QALORA_REQUIRE(!is_blank(instruction) || !is_blank(input), DataError, "the request is empty");
  Record record;
  if (is_blank(instruction)) instruction = std::exchange(input, {});
  record.instruction = std::move(instruction);
  record.input = is_blank(input) ? "" : std::move(input);
  record.output = std::move(output);
  return record;
}

// The keys are looked at in the order in which people name them, so that a message tells the first one missing.
Record read_pair(const json& record, const char* request_key, const char* answer_key) {
  std::string request = text_of(record, request_key);
  return exchange(std::move(request), "", answer_of(record, answer_key));
}

Record read_alpaca(const json& record) {
  if (!record.contains("instruction") && record.contains("prompt")) return read_pair(record, "prompt", "completion");
  std::string instruction = text_of(record, "instruction"), input = optional_text(record, "input");
  return exchange(std::move(instruction), std::move(input), answer_of(record, "output"));
}

std::vector<Record> read_self_instruct(const json& record) {
  if (!record.contains("instances") && record.contains("prompt")) {
    // The published set ends each completion with GPT-3's end mark, which is text to LLaMA.
    constexpr std::string_view kEnd = "<|endoftext|>";
    Record pair = read_pair(record, "prompt", "completion");
    if (pair.output.ends_with(kEnd)) pair.output.resize(pair.output.size() - kEnd.size());
    QALORA_REQUIRE(!is_blank(pair.output), DataError, "the answer 'completion' is empty");
    return {std::move(pair)};
  }
  const std::string& instruction = text_of(record, "instruction");
  const json& instances = member(record, "instances");
  QALORA_REQUIRE(instances.is_array() && !instances.empty(), DataError, "'instances' is ",
                 instances.is_array() ? "empty" : instances.type_name(), "; expected a list of {input, output}");
  std::vector<Record> records;
  for (const json& instance : instances) {
    QALORA_REQUIRE(instance.is_object(), DataError, "an entry of 'instances' is ", instance.type_name(),
                   "; expected {input, output}");
    std::string input = optional_text(instance, "input");
    records.push_back(exchange(instruction, std::move(input), answer_of(instance, "output")));
  }
  return records;
}

// A chat of one exchange is the same as a request and its answer, so that every template fits it.
Record chat(std::vector<Turn> turns) {
  const auto answers = [](const Turn& turn) { return turn.role == "assistant"; };
  QALORA_REQUIRE(std::any_of(turns.begin(), turns.end(), answers), DataError,
                 "no turn is the assistant's, so there is nothing to train");
  for (const Turn& turn : turns)
    QALORA_REQUIRE(turn.role != "assistant" || !is_blank(turn.content), DataError, "an assistant's turn is empty");
  if (turns.size() == 2 && turns[0].role == "user" && turns[1].role == "assistant") {
    return exchange(std::move(turns[0].content), "", std::move(turns[1].content));
  }
  Record record;
  record.turns = std::move(turns);
  return record;
}

std::vector<Record> read_chip2(const json& record) {
  const std::string_view text = text_of(record, "text");
  std::vector<Turn> turns;
  QALORA_REQUIRE(trim(text).starts_with(kHuman), DataError, "'text' does not begin with '", kHuman, "'");
  // A marker counts at the beginning of a line only.
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    const std::string_view line = text.substr(at, end - at);
    const bool human = trim(line).starts_with(kHuman), bot = trim(line).starts_with(kBot);
    if (human || bot) {
      turns.push_back(
          {human ? "user" : "assistant", std::string(trim(line).substr(human ? kHuman.size() : kBot.size()))});
    } else if (!turns.empty()) {
      turns.back().content += '\n';
      turns.back().content += line;
    }
    at = end + 1;
  }
  for (Turn& turn : turns) turn.content = std::string(trim(turn.content));
  return {chat(std::move(turns))};
}

std::string role_of(const std::string& name) {
  if (name == "human" || name == "user" || name == "prompter") return "user";
  if (name == "gpt" || name == "assistant" || name == "bot" || name == "model" || name == "chatgpt" || name == "bing" ||
      name == "bard")
    return "assistant";
  if (name == "system") return "system";
  throw DataError(message("a turn is of '", name, "'; expected user (human), assistant (gpt) or system"));
}

// A string, or a list of parts {"type": "text", "text": ..}.
std::string content_of(const json& turn, const char* key) {
  const json& content = member(turn, key);
  if (!content.is_array()) return text_of(turn, key);
  std::string text;
  for (const json& part : content) {
    QALORA_REQUIRE(part.is_object() && part.contains("text"), DataError, "a turn has a part that is not text");
    text += text_of(part, "text");
  }
  return text;
}

std::vector<Record> read_chat(const json& record, const char* list_key, const char* role_key, const char* content_key) {
  const json& list = member(record, list_key);
  QALORA_REQUIRE(list.is_array() && !list.empty(), DataError, "'", list_key, "' is ",
                 list.is_array() ? "empty" : list.type_name(), "; expected a list of turns");
  std::vector<Turn> turns;
  for (const json& turn : list) {
    QALORA_REQUIRE(turn.is_object(), DataError, "an entry of '", list_key, "' is ", turn.type_name(),
                   "; expected a turn");
    turns.push_back({role_of(text_of(turn, role_key)), content_of(turn, content_key)});
  }
  return {chat(std::move(turns))};
}

std::vector<int64_t> ids_of(const json& record, const char* key, bool labels) {
  const json& list = member(record, key);
  QALORA_REQUIRE(list.is_array() && !list.empty(), DataError, "'", key, "' is ",
                 list.is_array() ? "empty" : list.type_name(), "; expected a list of ids");
  std::vector<int64_t> ids;
  ids.reserve(list.size());
  for (const json& value : list) {
    const bool whole = value.is_number_integer() && value <= std::numeric_limits<int32_t>::max();
    QALORA_REQUIRE(whole && (value >= 0 || (labels && value == kIgnore)), DataError, "'", key, "' holds ", value.dump(),
                   "; expected token ids from 0", labels ? " or -100" : "");
    ids.push_back(value.get<int64_t>());
  }
  return ids;
}

std::vector<Record> read_tokens(const json& record) {
  Record result;
  result.input_ids = ids_of(record, "input_ids", false);
  result.labels = record.contains("labels") ? ids_of(record, "labels", true) : result.input_ids;
  QALORA_REQUIRE(result.labels.size() == result.input_ids.size(), DataError, "'labels' has ", result.labels.size(),
                 " entries, 'input_ids' has ", result.input_ids.size(), "; expected as many");
  return {std::move(result)};
}

std::vector<Record> read_text(const json& record) {
  Record result;
  result.text = text_of(record, "text");
  QALORA_REQUIRE(!is_blank(result.text), DataError, "'text' is empty");
  return {std::move(result)};
}

// The keys under which collections of several tasks name them.
std::string task_of(const json& record) {
  for (const char* key : {"task_name", "task", "subject", "category"}) {
    const auto found = record.find(key);
    if (found != record.end() && found->is_string()) return found->get<std::string>();
  }
  return "";
}

std::vector<Record> read_format(const json& record, DataFormat format) {
  switch (format) {
    case DataFormat::kAlpaca: return {read_alpaca(record)};
    case DataFormat::kFlan: return {read_pair(record, "inputs", "targets")};
    case DataFormat::kSelfInstruct: return read_self_instruct(record);
    case DataFormat::kLongForm: return {read_pair(record, "input", "output")};
    case DataFormat::kChip2: return read_chip2(record);
    case DataFormat::kShareGpt: return read_chat(record, "conversations", "from", "value");
    case DataFormat::kMessages: return read_chat(record, "messages", "role", "content");
    case DataFormat::kText: return read_text(record);
    case DataFormat::kTokens: return read_tokens(record);
    case DataFormat::kAuto: break;
  }
  throw InternalError("internal error: a record is read before its format is known");
}

// "[json.exception.parse_error.101] parse error at line 1, column 7: ...; last read: ...": the part behind the bracket
// is for people; its line counts inside the record, and what was read last may be the whole record.
std::string reason_of(std::string_view what) {
  constexpr size_t kLongest = 200;
  constexpr std::string_view kFirstLine = "parse error at line 1, ", kLine = "parse error at ";
  const auto bracket = what.find("] ");
  if (bracket != std::string_view::npos) what.remove_prefix(bracket + 2);
  std::string where;
  if (what.starts_with(kFirstLine)) {
    what.remove_prefix(kFirstLine.size());
  } else if (what.starts_with(kLine)) {
    what.remove_prefix(kLine.size());
    where = "in the record's ";
  }
  return where + replace_invalid_utf8(what.substr(0, kLongest)) + (what.size() > kLongest ? "..." : "");
}

}  // namespace

std::string data_format_name(DataFormat format) {
  for (const Name& entry : kNames) {
    if (entry.format == format) return entry.name;
  }
  throw InternalError("internal error: a data format without a name");
}

DataFormat parse_data_format(std::string_view name) {
  std::vector<std::string> names;
  for (const Name& entry : kNames) {
    if (name == entry.name) return entry.format;
    names.emplace_back(entry.name);
  }
  throw UserError(
      message("unknown data format '", name, "'", did_you_mean(name, names), "; one of: ", join(names, ", ")));
}

json parse_record(std::string_view bytes) {
  std::vector<std::set<std::string>> keys;  // of each object that is open
  std::string twice;
  bool nul = false;
  const auto watch = [&](int, json::parse_event_t event, json& value) {
    if (event == json::parse_event_t::object_start) keys.emplace_back();
    if (event == json::parse_event_t::object_end) keys.pop_back();
    if (event == json::parse_event_t::key && !keys.back().insert(value.get_ref<const std::string&>()).second) {
      twice = value.get_ref<const std::string&>();
    }
    if (event == json::parse_event_t::value && value.is_string()) {
      nul |= value.get_ref<const std::string&>().find('\0') != std::string::npos;
    }
    return true;
  };
  json record;
  try {
    record = json::parse(bytes.begin(), bytes.end(), watch);
  } catch (const json::exception& error) {
    throw DataError(message("not valid JSON: ", reason_of(error.what())));
  }
  QALORA_REQUIRE(record.is_object(), DataError, "the record is ", record.type_name(), "; expected an object");
  QALORA_REQUIRE(twice.empty(), DataError, "the key '", twice, "' occurs twice");
  QALORA_REQUIRE(!nul, DataError, "a NUL character (\\u0000) stands in the text");
  return record;
}

std::string key_names(const json& record) {
  std::vector<std::string> names;
  for (const auto& [key, value] : record.items()) {
    if (names.size() == 12) {
      names.emplace_back("...");
      break;
    }
    names.push_back("'" + (key.size() > 40 ? key.substr(0, 40) + "..." : key) + "'");
  }
  return names.empty() ? "no keys" : join(names, ", ");
}

DataFormat detect_format(const json& record) {
  const auto has = [&](const char* key) { return record.contains(key); };
  if (has("input_ids")) return DataFormat::kTokens;
  if (has("conversations")) return DataFormat::kShareGpt;
  if (has("messages")) return DataFormat::kMessages;
  if (has("instances")) return DataFormat::kSelfInstruct;
  if (has("inputs") && has("targets")) return DataFormat::kFlan;
  if (has("instruction") && has("output")) return DataFormat::kAlpaca;
  if (has("prompt") && has("completion")) return DataFormat::kSelfInstruct;
  if (has("input") && has("output")) return DataFormat::kLongForm;
  if (!has("text")) return DataFormat::kAuto;
  const json& text = record["text"];
  const bool marked = text.is_string() && text.get_ref<const std::string&>().find(kBot) != std::string::npos &&
                      trim(text.get_ref<const std::string&>()).starts_with(kHuman);
  return marked ? DataFormat::kChip2 : DataFormat::kText;
}

std::vector<Record> read_records(const json& record, DataFormat format) {
  std::vector<Record> records = read_format(record, format);
  const std::string task = task_of(record);
  for (Record& each : records) each.task = task;
  return records;
}

}  // namespace qalora::text
