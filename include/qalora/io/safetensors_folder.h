// A folder's model.safetensors, or every shard that model.safetensors.index.json names.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "qalora/io/safetensors.h"

namespace qalora::io {

// Shards have no path components in their names, and each tensor is in the shard that the index says, and nowhere else.
class SafetensorsFolder : public TensorSource {
 public:
  static bool exists(const fs::path& folder);
  explicit SafetensorsFolder(const fs::path& folder);

  const std::map<std::string, TensorInfo>& tensors() const override { return tensors_; }
  at::Tensor read(const std::string& name) const override { return shard_of(name).read(name); }
  TensorBytes bytes(const std::string& name) const override { return shard_of(name).bytes(name); }
  void release(const std::string& name) const override { shard_of(name).release(name); }
  const fs::path& file_of(const std::string& name) const override { return shard_of(name).path(); }
  std::vector<fs::path> files() const override;

 private:
  const SafetensorsFile& shard_of(const std::string& name) const;
  std::vector<std::unique_ptr<SafetensorsFile>> shards_;
  std::map<std::string, size_t> where_;
  std::map<std::string, TensorInfo> tensors_;
};

}  // namespace qalora::io
