// JSON Lines: one JSON object a line.
#pragma once

#include <cstdint>
#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "qalora/core/file.h"

namespace qalora::eval {

// Calls record(object, "file:line") for each line that is not blank. DataError names file and line of what is not an
// object. A record that returns false ends the reading.
void read_json_lines(const fs::path& path,
                     const std::function<bool(const nlohmann::json&, const std::string& where)>& record);

// The string at `key`; DataError naming `where` when it is missing or something else.
std::string string_field(const nlohmann::json& object, const char* key, const std::string& where);

}  // namespace qalora::eval
