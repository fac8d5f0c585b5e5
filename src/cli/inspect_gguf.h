// What `inspect` says about a GGUF file.
#pragma once

#include <nlohmann/json_fwd.hpp>

#include "qalora/core/file.h"

namespace qalora::cli {

// A model that is read here is described as a checkpoint is, with the file's own types; of any other valid file what
// its header says.
nlohmann::json inspect_gguf(const fs::path& path);

}  // namespace qalora::cli
