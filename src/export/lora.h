// An adapter as an ordinary LoRA that PEFT, vLLM and others run beside the quantised or dense base.
#pragma once

#include "qalora/export/export.h"

namespace qalora::exporting {

Plan plan_lora(const Source& source, const Options& options);
std::vector<TensorReport> write_lora(const Source& source, const Options& options, const fs::path& out, bool replace);

}  // namespace qalora::exporting
