// inspect's answers about single files that are neither tensors nor a tokenizer.
#pragma once

#include <nlohmann/json_fwd.hpp>

#include "qalora/core/file.h"

namespace qalora::cli {

// By name where the program gives it one, else by what the file begins with. DataError for what is not known.
nlohmann::json inspect_file(const fs::path& path);

}  // namespace qalora::cli
