#include "qalora/io/shards.h"

#include <ATen/ATen.h>

#include <nlohmann/json.hpp>

#include "qalora/core/error.h"
#include "qalora/io/json_file.h"

namespace qalora::io {
namespace {

// {tensor: file} of an index whose file names are plain names.
std::map<std::string, std::string> read_index(const fs::path& path, std::string_view ending) {
  const nlohmann::json index = read_json_file(path);
  const std::string name = path.string();
  QALORA_REQUIRE(index.is_object() && index.contains("weight_map") && index["weight_map"].is_object(), DataError, name,
                 ": expected an object with 'weight_map'");
  std::map<std::string, std::string> files;
  for (const auto& [tensor, file] : index["weight_map"].items()) {
    QALORA_REQUIRE(file.is_string(), DataError, name, ": tensor '", tensor, "': the file's name must be text");
    const auto& value = file.get_ref<const std::string&>();
    const bool plain = value.ends_with(ending) && value.find_first_of("/\\") == std::string::npos &&
                       !value.starts_with("..") && value.find('\0') == std::string::npos;
    QALORA_REQUIRE(plain, DataError, name, ": tensor '", tensor, "': '", value, "' is not the name of a ", ending,
                   " file in this folder");
    files[tensor] = value;
  }
  QALORA_REQUIRE(!files.empty(), DataError, name, ": 'weight_map' names no tensor");
  return files;
}

}  // namespace

Shards::Shards(const fs::path& file, std::string_view ending, const Open& open) {
  if (file.string().ends_with(".index.json")) {
    open_index(file, ending, open);
    return;
  }
  shards_.push_back(open(file));
  tensors_ = shards_[0]->tensors();
  QALORA_REQUIRE(!tensors_.empty(), DataError, file.string(), ": there is no tensor in it");
  for (const auto& [name, info] : tensors_) where_[name] = 0;
}

void Shards::open_index(const fs::path& index_path, std::string_view ending, const Open& open) {
  const auto index = read_index(index_path, ending);
  std::map<std::string, size_t> shard_of_file;
  for (const auto& [tensor, file] : index) {
    QALORA_REQUIRE(kind_of(index_path.parent_path() / file) != fs::file_type::not_found, DataError, index_path.string(),
                   ": tensor '", tensor, "' is said to be in '", file,
                   "', which is not there; fetch the missing shard");
    shard_of_file[file] = 0;
  }
  for (auto& [file, shard] : shard_of_file) {  // by name, so that shards are numbered as their files are
    shard = shards_.size();
    shards_.push_back(open(index_path.parent_path() / file));
  }
  for (const auto& [tensor, file] : index) {
    const size_t shard = shard_of_file[file];
    QALORA_REQUIRE(shards_[shard]->contains(tensor), DataError, index_path.string(), ": tensor '", tensor,
                   "' is not in '", file, "', where the index places it");
    where_[tensor] = shard;
  }
  for (size_t shard = 0; shard < shards_.size(); ++shard) {
    for (const auto& [tensor, info] : shards_[shard]->tensors()) {
      const auto found = where_.find(tensor);
      QALORA_REQUIRE(found != where_.end() && found->second == shard, DataError,
                     shards_[shard]->file_of(tensor).string(), ": tensor '", tensor, "' is in this file, but ",
                     index_path.filename().string(),
                     found == where_.end() ? " does not name it" : " places it in another");
    }
  }
  for (const auto& [tensor, shard] : where_) tensors_[tensor] = shards_[shard]->info(tensor);
}

at::Tensor Shards::read(const std::string& name) const { return shard_of(name).read(name); }

const TensorSource& Shards::shard_of(const std::string& name) const {
  info(name);
  return *shards_[where_.at(name)];
}

std::vector<fs::path> Shards::files() const {
  std::vector<fs::path> result;
  for (const auto& shard : shards_) result.push_back(shard->files().at(0));
  return result;
}

}  // namespace qalora::io
