// MLX's affine layout, which is the program's own: w = scales * codes + biases, a little-endian bit stream a row.
#pragma once

#include "qalora/export/export.h"

namespace qalora::exporting {

Plan plan_mlx(const Source& source, const Options& options);
std::vector<TensorReport> write_mlx(const Source& source, const Options& options, const fs::path& out, bool replace);

}  // namespace qalora::exporting
