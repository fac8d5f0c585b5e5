// What --version says of CUDA.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

namespace qalora::cli {

std::string cuda_line();     // "CUDA 13.0.88 for 8.0, 9.0; driver 13.0; NVIDIA H200 (9.0, 151 GB)" or why not
nlohmann::json cuda_json();  // null when not built

}  // namespace qalora::cli
