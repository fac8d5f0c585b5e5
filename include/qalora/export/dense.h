// A dense checkpoint as transformers and vLLM read it, of any model that the program reads; with an adapter added to
// its weights.
#pragma once

#include "qalora/export/export.h"

namespace qalora::exporting {

// options.weights_dtype: float32, float16 or bfloat16; "": as the source's embedding is stored. An adapter is merged,
// or, where it is an ordinary LoRA, added: dense weights can hold either.
Plan plan_dense(const Source& source, const Options& options);
// UserError when a weight is too large for float16.
std::vector<TensorReport> write_dense(const Source& source, const Options& options, const fs::path& out, bool replace);

}  // namespace qalora::exporting
