// GGUF for llama.cpp: what there is shared between the model's file and the adapter's.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "qalora/export/export.h"
#include "qalora/io/gguf_writer.h"

namespace qalora::exporting {

Plan plan_gguf(const Source& source, const Options& options);
std::vector<TensorReport> write_gguf(const Source& source, const Options& options, const fs::path& out, bool replace);

// "llama" for LLaMA and Mistral, "qwen2", "qwen3".
std::string gguf_architecture(const model::LlamaConfig& config);
// Refuses a rotary scaling that the engine does not compute.
void check_gguf_rope(const Source& source);
io::GgufMetadata gguf_metadata(const Source& source, int64_t file_type, bool quantised,
                               std::vector<std::string>& notes);
// The divisors of LLaMA 3's scaling, f32 [head_dim / 2]; empty where there are none.
std::vector<float> gguf_rope_divisors(const model::LlamaConfig& config);

// The row here of row `row` there (io::gguf_row the other way).
int64_t row_from_gguf(int64_t row, int64_t head_dim);
// Whether rows of "P.weight" are sorted otherwise there.
bool is_permuted(const model::LlamaConfig& config, const std::string& name);

// The adapter that lies beside the model's file: OUT with ".gguf" replaced by ".lora.gguf", or with that behind it.
fs::path gguf_adapter_path(const fs::path& out);
uint64_t gguf_adapter_bytes(const Source& source);
// Everything is written, and finish() puts the file in its place.
std::unique_ptr<io::GgufWriter> write_gguf_adapter(const Source& source, const fs::path& path);

}  // namespace qalora::exporting
