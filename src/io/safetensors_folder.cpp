#include "qalora/io/safetensors_folder.h"

#include "qalora/io/safetensors.h"

namespace qalora::io {
namespace {

constexpr const char* kSingleFile = "model.safetensors";
constexpr const char* kIndexFile = "model.safetensors.index.json";

bool is_there(const fs::path& path) { return kind_of(path) != fs::file_type::not_found; }

}  // namespace

bool SafetensorsFolder::exists(const fs::path& folder) { return is_there(folder / kSingleFile) || is_there(folder / kIndexFile); }

SafetensorsFolder::SafetensorsFolder(const fs::path& folder)
    : Shards(folder / (is_there(folder / kSingleFile) ? kSingleFile : kIndexFile), ".safetensors",
             [](const fs::path& path) { return std::make_unique<SafetensorsFile>(path); }) {}

}  // namespace qalora::io
