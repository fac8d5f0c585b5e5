#include "qalora/io/checkpoint.h"

#include <ATen/ATen.h>

#include <nlohmann/json.hpp>

#include "qalora/core/error.h"
#include "qalora/io/model_files.h"

namespace qalora::io {
namespace {

bool is_there(const fs::path& path) { return kind_of(path) != fs::file_type::not_found; }

}  // namespace

Checkpoint::Checkpoint(const fs::path& model)
    : folder_(model),
      files_(std::make_unique<ModelFiles>(open_model(model))) {}
Checkpoint::~Checkpoint() = default;

const TensorSource& Checkpoint::source() const { return *files_->tensors; }

const nlohmann::json& Checkpoint::config() const {
  QALORA_REQUIRE(!files_->config.is_null(), DataError, files_->config_name, ": there is no such file");
  return files_->config;
}

const std::string& Checkpoint::config_name() const { return files_->config_name; }

bool Checkpoint::contains(const std::string& name) const { return source().contains(name); }

const TensorInfo& Checkpoint::info(const std::string& name) const {
  QALORA_REQUIRE(contains(name), DataError, folder_.string(), ": there is no tensor '", name, "'");
  return source().info(name);
}

at::Tensor Checkpoint::read(const std::string& name) const {
  info(name);
  return source().read(name);
}

at::Tensor Checkpoint::read(const std::string& name, at::IntArrayRef shape) const {
  const at::IntArrayRef stored = info(name).shape;
  QALORA_REQUIRE(stored == shape, DataError, file_of(name).string(), ": tensor '", name, "' has shape ", stored,
                 ", expected ", shape);
  return read(name);
}

TensorBytes Checkpoint::bytes(const std::string& name) const {
  info(name);
  return source().bytes(name);
}

std::vector<TensorBytes> Checkpoint::stored(const std::string& name) const {
  info(name);
  return source().stored(name);
}

void Checkpoint::release(const std::string& name) const {
  info(name);
  source().release(name);
}

std::vector<std::string> Checkpoint::names() const {
  std::vector<std::string> result;
  for (const auto& [name, info] : source().tensors()) result.push_back(name);
  return result;
}

uint64_t Checkpoint::total_bytes() const {
  uint64_t total = 0;  // cannot overflow: every tensor lies in a file that is there
  for (const auto& [name, info] : source().tensors()) total += info.bytes();
  return total;
}

const fs::path& Checkpoint::file_of(const std::string& name) const {
  info(name);
  return source().file_of(name);
}

std::vector<fs::path> Checkpoint::files() const { return source().files(); }

std::vector<std::string> sidecars(const fs::path& folder) {
  std::vector<std::string> names;
  for (const char* name :
       {"tokenizer.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
        "vocab.json", "merges.txt", "chat_template.json", "chat_template.jinja", "generation_config.json", "LICENSE",
        "LICENSE.txt", "LICENSE.md", "USE_POLICY.md", "NOTICE", "NOTICE.txt"}) {
    const fs::path path = folder / name;
    std::error_code failed;
    if (!fs::exists(fs::symlink_status(path, failed))) continue;
    QALORA_REQUIRE(is_there(path), DataError, path.string(),
                   ": is a link that leads nowhere; restore the file or remove the link");
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
