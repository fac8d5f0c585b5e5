// What `inspect` found, as a person reads it.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

namespace qalora::cli {

// "PATH: KIND", a row a fact, then the tensors. Names that come from a file (keys, metadata, settings) stand as they
// are, so that they can be copied; of what is empty nothing is shown.
std::string inspect_text(const nlohmann::json& document);

}  // namespace qalora::cli
