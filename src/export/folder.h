// What the exports into a Hugging Face style folder share.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <set>
#include <string>
#include <vector>

#include "qalora/export/export.h"
#include "qalora/io/safetensors.h"
#include "qalora/model/load.h"

namespace qalora::exporting {

// Shape of a weight matrix by its module: [out_features, in_features].
struct Matrix {
  std::string module;
  int64_t out_features = 0, in_features = 0;
};

// Every packed matrix of the source: projections, and an embedding or head that is packed too.
std::vector<Matrix> packed_matrices(const Source& source);
quant::PackedWeight read_packed(const Source& source, const Matrix& matrix);

// The names of every tensor that belongs to the model, packed ones with their scales and offsets; not the tables of
// constants that some files carry.
std::vector<std::string> tensor_names(const Source& source);

// UserError when the source's inputs were permuted before they were grouped (act-order), which only GPTQ's own engines
// undo.
void refuse_permuted(const Source& source, const char* format);
// UserError when the format takes no adapter. `way`: what to do instead.
void refuse_adapter(const Source& source, const char* format, const char* way);
// UserError when an option was given that the format has no use for.
void refuse_option(const std::string& value, const char* flag, const char* format);
// UserError unless value is one of `known`; "" gives the fallback.
io::Dtype choose_dtype(const std::string& value, const char* flag, io::Dtype fallback,
                       const std::set<std::string>& known);
at::ScalarType scalar_of(io::Dtype dtype);

// Bytes of the plan and of what lies beside the weights.
uint64_t folder_bytes(const Source& source, const std::vector<io::PlannedTensor>& plan);
// The largest tensor of the source stands in memory twice, beside what the process uses by itself.
uint64_t peak_bytes(const std::vector<io::PlannedTensor>& plan, double copies);
// config.json and everything that belongs to a model beside its weights.
void write_beside_weights(const Source& source, const nlohmann::json& config, const fs::path& folder);

}  // namespace qalora::exporting
