#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "qalora/core/error.h"
#include "qalora/core/format.h"
#include "qalora/io/json_fault.h"
#include "qalora/io/json_file.h"

namespace qalora::io {
namespace {

constexpr int kMaxDepth = 64;  // of nesting; a model's configuration needs five

}  // namespace

std::string json_fault(std::string_view text, size_t byte) {
  if (text.find_first_not_of(" \t\r\n") == std::string_view::npos) return "the file is empty; restore it";
  if (byte > text.size()) return "not valid JSON: the file ends in the middle; get the whole file";
  const auto line = 1 + std::count(text.begin(), text.begin() + static_cast<std::ptrdiff_t>(byte), '\n');
  return message("not valid JSON at line ", line, ", byte ", byte, " of ", text.size());
}

nlohmann::json read_json_file(const fs::path& path) {
  const std::string name = path.string();
  const std::string text = read_text_file(path);
  QALORA_REQUIRE(text.find('\0') == std::string::npos, DataError, name,
                 ": a zero byte stands in the file; it is damaged");
  QALORA_REQUIRE(valid_utf8(text), DataError, name, ": the file is not UTF-8 text");
  // The keys seen in each object that is open; two equal ones would silently become one.
  std::vector<std::set<std::string>> keys;
  const auto callback = [&](int depth, nlohmann::json::parse_event_t event, nlohmann::json& parsed) {
    using Event = nlohmann::json::parse_event_t;
    if (event == Event::object_start || event == Event::array_start) {
      QALORA_REQUIRE(depth < kMaxDepth, DataError, name, ": nested more than ", kMaxDepth, " levels deep");
    }
    if (event == Event::object_start) keys.emplace_back();
    if (event == Event::object_end) keys.pop_back();
    if (event == Event::key) {
      const auto& key = parsed.get_ref<const std::string&>();
      QALORA_REQUIRE(keys.back().insert(key).second, DataError, name, ": the key '", key, "' stands twice");
    }
    return true;
  };
  try {
    return nlohmann::json::parse(text, callback);
  } catch (const nlohmann::json::parse_error& error) {
    throw DataError(message(name, ": ", json_fault(text, error.byte)));
  } catch (const nlohmann::json::out_of_range& error) {
    throw DataError(message(name, ": a number in it is out of range: ", error.what()));
  }
}

void write_json_file(const fs::path& path, const nlohmann::json& value) {
  write_text_file(path, value.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
}

}  // namespace qalora::io
