// GPTQ's layout, version 2, for bases whose offsets are integer zero points.
#pragma once

#include "qalora/export/export.h"

namespace qalora::exporting {

Plan plan_gptq(const Source& source, const Options& options);
std::vector<TensorReport> write_gptq(const Source& source, const Options& options, const fs::path& out, bool replace);

}  // namespace qalora::exporting
