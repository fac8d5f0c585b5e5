#include "qalora/io/checkpoint.h"

#include <ATen/ATen.h>

#include <nlohmann/json.hpp>
#include <set>

#include "qalora/core/error.h"
#include "qalora/core/format.h"

namespace qalora::io {
namespace {

constexpr const char* kSingleFile = "model.safetensors";
constexpr const char* kIndexFile = "model.safetensors.index.json";

// Why a folder without model.safetensors cannot be read, with what to do.
std::string explain_missing(const fs::path& folder) {
  std::set<std::string> found, others;
  for (const std::string& name : list_folder(folder)) {
    if (name == "adapter_model.safetensors" || name == "adapter_config.json") {
      return "this is an adapter, not a model; pass it with --adapter and its base with --model";
    }
    const bool torch = name.starts_with("pytorch_model") || name.ends_with(".pth") || name.ends_with(".pt") || name.ends_with(".ckpt");
    if (torch) found.insert("PyTorch weights (" + name + ")");
    if (name.ends_with(".gguf")) found.insert("a GGUF file (" + name + ")");
    if (name.ends_with(".npz") || name.ends_with(".msgpack") || name.ends_with(".h5") || name.ends_with(".onnx")) found.insert(name);
    if (name.ends_with(".safetensors")) others.insert(name);
  }
  if (found.empty()) found = others;
  if (found.empty()) return message("expected ", kSingleFile, " or ", kIndexFile, " in it");
  return message("it holds ", join({found.begin(), found.end()}, ", "), ", which this version does not read; expected ", kSingleFile,
                 " or ", kIndexFile, "; convert the model to safetensors first (transformers: save_pretrained)");
}

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

Checkpoint::Checkpoint(const fs::path& folder) : folder_(folder) {
  QALORA_REQUIRE(is_there(folder), UserError, folder.string(), ": there is no such folder");
  QALORA_REQUIRE(kind_of(folder) == fs::file_type::directory, UserError, folder.string(), ": is a file; expected the folder of a model");
  if (is_there(folder / kSingleFile)) {
    shards_.push_back(std::make_unique<SafetensorsFile>(folder / kSingleFile));
    for (const auto& [name, info] : shards_[0]->tensors()) where_[name] = 0;
    QALORA_REQUIRE(!where_.empty(), DataError, (folder / kSingleFile).string(), ": there is no tensor in it");
    return;
  }
  const fs::path index_path = folder / kIndexFile;
  QALORA_REQUIRE(is_there(index_path), DataError, folder.string(), ": no weights that can be read: ", explain_missing(folder));
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
}

const TensorInfo& Checkpoint::info(const std::string& name) const {
  const auto found = where_.find(name);
  QALORA_REQUIRE(found != where_.end(), DataError, folder_.string(), ": there is no tensor '", name, "'");
  return shards_[found->second]->info(name);
}

at::Tensor Checkpoint::read(const std::string& name) const {
  info(name);
  return shards_[where_.at(name)]->read(name);
}

at::Tensor Checkpoint::read(const std::string& name, at::IntArrayRef shape) const {
  const at::IntArrayRef stored = info(name).shape;
  QALORA_REQUIRE(stored == shape, DataError, file_of(name).string(), ": tensor '", name, "' has shape ", stored, ", expected ", shape);
  return read(name);
}

std::span<const std::byte> Checkpoint::bytes(const std::string& name) const {
  info(name);
  return shards_[where_.at(name)]->bytes(name);
}

void Checkpoint::release(const std::string& name) const {
  info(name);
  shards_[where_.at(name)]->release(name);
}

std::vector<std::string> Checkpoint::names() const {
  std::vector<std::string> result;
  for (const auto& [name, shard] : where_) result.push_back(name);
  return result;
}

uint64_t Checkpoint::total_bytes() const {
  uint64_t total = 0;  // cannot overflow: every tensor lies in a file that is there
  for (const auto& [name, shard] : where_) total += shards_[shard]->info(name).bytes();
  return total;
}

const fs::path& Checkpoint::file_of(const std::string& name) const {
  info(name);
  return shards_[where_.at(name)]->path();
}

std::vector<fs::path> Checkpoint::files() const {
  std::vector<fs::path> result;
  for (const auto& shard : shards_) result.push_back(shard->path());
  return result;
}

std::vector<std::string> sidecars(const fs::path& folder) {
  std::vector<std::string> names;
  for (const char* name : {"tokenizer.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
                           "vocab.json", "merges.txt", "chat_template.json", "chat_template.jinja", "generation_config.json", "LICENSE",
                           "LICENSE.txt", "LICENSE.md", "USE_POLICY.md", "NOTICE", "NOTICE.txt"}) {
    const fs::path path = folder / name;
    std::error_code failed;
    if (!fs::exists(fs::symlink_status(path, failed))) continue;
    QALORA_REQUIRE(is_there(path), DataError, path.string(), ": is a link that leads nowhere; restore the file or remove the link");
    const MappedFile readable(path);
    names.push_back(name);
  }
  return names;
}

void copy_sidecars(const fs::path& from, const fs::path& to) {
  for (const std::string& name : sidecars(from)) copy_file_synced(from / name, to / name);
}

uint64_t sidecar_bytes(const fs::path& folder) {
  uint64_t total = 8'000'000;  // headers, config.json and the index of shards
  for (const std::string& name : sidecars(folder)) total += MappedFile(folder / name).bytes().size();
  return total;
}

}  // namespace qalora::io
