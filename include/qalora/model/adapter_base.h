// An adapter as the base it is for understands it: what its own files do not say follows from the shapes of the base's
// layers.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "qalora/io/adapter_file.h"
#include "qalora/model/config.h"

namespace qalora::model {

// Dense shapes [out_features, in_features] of the linear layers by module.
std::map<std::string, std::vector<int64_t>> linear_shapes(const LlamaConfig& config);

// io::read_adapter, then:
// - an adapter without a word about pooling, whose A has in_features / L columns with one L for all layers, is one of
// the official QA-LoRA
//   code (mean over L inputs); that is logged;
// - one that pools groups that are several of a quantised base's groups is spread over them: the same function, column
// by column, and it
//   merges exactly.
// Modules that the base lacks stay as they are: attaching and merging name them.
io::AdapterFile read_adapter_for(const fs::path& folder, const LlamaConfig& base);

// The same for an adapter that was read; `where` begins every message.
void fit_to_base(io::AdapterFile& adapter, const LlamaConfig& base, const std::string& where);

}  // namespace qalora::model
