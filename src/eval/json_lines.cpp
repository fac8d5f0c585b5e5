#include "qalora/eval/json_lines.h"

#include <nlohmann/json.hpp>

#include <string_view>

#include "qalora/core/error.h"

namespace qalora::eval {

void read_json_lines(const fs::path& path,
                     const std::function<bool(const nlohmann::json&, const std::string& where)>& record) {
  const MappedFile file(path);
  std::string_view rest(reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size());
  if (rest.starts_with("\xEF\xBB\xBF")) rest.remove_prefix(3);
  for (int64_t number = 1; !rest.empty(); ++number) {
    const size_t end = rest.find('\n');
    const std::string_view line = rest.substr(0, end);
    rest = end == std::string_view::npos ? std::string_view() : rest.substr(end + 1);
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    const std::string where = message(path.string(), ":", number);
    const nlohmann::json value = nlohmann::json::parse(line, nullptr, false);
    const bool array = number == 1 && line.starts_with('[');
    QALORA_REQUIRE(!array, DataError, where,
                   ": begins a JSON array, expected JSON Lines: one object a line; jq -c '.[]' makes them of it");
    QALORA_REQUIRE(!value.is_discarded(), DataError, where, ": not valid JSON; expected one JSON object a line");
    QALORA_REQUIRE(value.is_object(), DataError, where, ": expected a JSON object, got ", value.type_name());
    if (!record(value, where)) return;
  }
}

std::string string_field(const nlohmann::json& object, const char* key, const std::string& where) {
  const auto found = object.find(key);
  QALORA_REQUIRE(found != object.end(), DataError, where, ": the key \"", key, "\" is missing");
  QALORA_REQUIRE(found->is_string(), DataError, where, ": \"", key, "\" must be a string, got ", found->type_name());
  return found->get<std::string>();
}

}  // namespace qalora::eval
