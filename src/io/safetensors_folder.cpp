#include "qalora/io/safetensors_folder.h"

#include "qalora/io/safetensors.h"

namespace qalora::io {
namespace {

const std::string kSingle = ".safetensors", kIndex = ".safetensors.index.json";

bool is_there(const fs::path& path) { return kind_of(path) != fs::file_type::not_found; }

}  // namespace

bool SafetensorsFolder::exists(const fs::path& folder, const std::string& stem) {
  return is_there(folder / (stem + kSingle)) || is_there(folder / (stem + kIndex));
}

SafetensorsFolder::SafetensorsFolder(const fs::path& folder, const std::string& stem)
    : Shards(folder / (stem + (is_there(folder / (stem + kSingle)) ? kSingle : kIndex)), kSingle,
             [](const fs::path& path) { return std::make_unique<SafetensorsFile>(path); }) {}

}  // namespace qalora::io
