// `inspect --explain-kernels`: which kernel a device would run for a model's layers, and why.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "qalora/core/file.h"

namespace qalora::cli {

// {"kind":"kernels","path":..,"architecture":90,"layers":[{"shapes":["4096 x
// 11008",..],"bits":4,"group_size":32,"kernels":[a line each]}]}; layers that are treated alike stand together.
// architecture: 10 * major + minor. UserError where the checkpoint is not quantised.
nlohmann::json explain_kernels(const fs::path& folder, int architecture);
std::string explain_kernels_text(const nlohmann::json& document);

}  // namespace qalora::cli
