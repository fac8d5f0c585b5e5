// JSON files, read and written whole.
#pragma once

#include <nlohmann/json_fwd.hpp>

#include "qalora/core/file.h"

namespace qalora::io {

nlohmann::json read_json_file(const fs::path& path);  // DataError with file and position for bad JSON or deep nesting
void write_json_file(const fs::path& path, const nlohmann::json& value);

}  // namespace qalora::io
