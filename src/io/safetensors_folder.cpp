#include "qalora/io/safetensors_folder.h"

#include <ATen/ATen.h>

#include <nlohmann/json.hpp>

#include "qalora/core/error.h"
#include "qalora/io/json_file.h"

namespace qalora::io {
namespace {

constexpr const char* kSingleFile = "model.safetensors";
constexpr const char* kIndexFile = "model.safetensors.index.json";

bool is_there(const fs::path& path) { return kind_of(path) != fs::file_type::not_found; }

// {tensor: file} of an index whose file names are plain names.
std::map<std::string, std::string> read_index(const fs::path& path) {
  const nlohmann::json index = read_json_file(path);
  const std::string name = path.string();
  QALORA_REQUIRE(index.is_object() && index.contains("weight_map") && index["weight_map"].is_object(), DataError, name,
                 ": expected an object with 'weight_map'");
  std::map<std::string, std::string> files;
  for (const auto& [tensor, file] : index["weight_map"].items()) {
    QALORA_REQUIRE(file.is_string(), DataError, name, ": tensor '", tensor, "': the file's name must be text");
    const auto& value = file.get_ref<const std::string&>();
    const bool plain = value.ends_with(".safetensors") && value.find_first_of("/\\") == std::string::npos && !value.starts_with("..") &&
                       value.find('\0') == std::string::npos;
    QALORA_REQUIRE(plain, DataError, name, ": tensor '", tensor, "': '", value, "' is not the name of a .safetensors file in this folder");
    files[tensor] = value;
  }
  QALORA_REQUIRE(!files.empty(), DataError, name, ": 'weight_map' names no tensor");
  return files;
}

}  // namespace

bool SafetensorsFolder::exists(const fs::path& folder) { return is_there(folder / kSingleFile) || is_there(folder / kIndexFile); }

SafetensorsFolder::SafetensorsFolder(const fs::path& folder) {
  if (is_there(folder / kSingleFile)) {
    shards_.push_back(std::make_unique<SafetensorsFile>(folder / kSingleFile));
    for (const auto& [name, info] : shards_[0]->tensors()) where_[name] = 0;
    QALORA_REQUIRE(!where_.empty(), DataError, (folder / kSingleFile).string(), ": there is no tensor in it");
    tensors_ = shards_[0]->tensors();
    return;
  }
  const fs::path index_path = folder / kIndexFile;
  const auto index = read_index(index_path);
  std::map<std::string, size_t> shard_of_file;
  for (const auto& [tensor, file] : index) {
    QALORA_REQUIRE(is_there(folder / file), DataError, index_path.string(), ": tensor '", tensor, "' is said to be in '", file,
                   "', which is not there; fetch the missing shard");
    shard_of_file[file] = 0;
  }
  for (auto& [file, shard] : shard_of_file) {  // by name, so that shards are numbered as their files are
    shard = shards_.size();
    shards_.push_back(std::make_unique<SafetensorsFile>(folder / file));
  }
  for (const auto& [tensor, file] : index) {
    const size_t shard = shard_of_file[file];
    QALORA_REQUIRE(shards_[shard]->contains(tensor), DataError, index_path.string(), ": tensor '", tensor, "' is not in '", file,
                   "', where the index places it");
    where_[tensor] = shard;
  }
  for (size_t shard = 0; shard < shards_.size(); ++shard) {
    for (const auto& [tensor, info] : shards_[shard]->tensors()) {
      const auto found = where_.find(tensor);
      QALORA_REQUIRE(found != where_.end() && found->second == shard, DataError, shards_[shard]->path().string(), ": tensor '", tensor,
                     "' is in this file, but ", kIndexFile, found == where_.end() ? " does not name it" : " places it in another");
    }
  }
  for (const auto& [tensor, shard] : where_) tensors_[tensor] = shards_[shard]->info(tensor);
}

const SafetensorsFile& SafetensorsFolder::shard_of(const std::string& name) const {
  info(name);
  return *shards_[where_.at(name)];
}

std::vector<fs::path> SafetensorsFolder::files() const {
  std::vector<fs::path> result;
  for (const auto& shard : shards_) result.push_back(shard->path());
  return result;
}

}  // namespace qalora::io
