// Several files, each a TensorSource, as one: what an index says, {"weight_map": {tensor: file}}.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "qalora/io/tensor_source.h"

namespace qalora::io {

// Shards have no path components in their names, and each tensor is in the shard that the index says, and nowhere else.
class Shards : public TensorSource {
 public:
  using Open = std::function<std::unique_ptr<TensorSource>(const fs::path&)>;

  // file: an index (its name ends in ".index.json") of files in the same folder whose names end in `ending`, or a
  // single such file.
  Shards(const fs::path& file, std::string_view ending, const Open& open);

  const std::map<std::string, TensorInfo>& tensors() const override { return tensors_; }
  at::Tensor read(const std::string& name) const override;
  TensorBytes bytes(const std::string& name) const override { return shard_of(name).bytes(name); }
  std::vector<TensorBytes> stored(const std::string& name) const override { return shard_of(name).stored(name); }
  void release(const std::string& name) const override { shard_of(name).release(name); }
  const fs::path& file_of(const std::string& name) const override { return shard_of(name).file_of(name); }
  std::vector<fs::path> files() const override;

 private:
  void open_index(const fs::path& index, std::string_view ending, const Open& open);
  const TensorSource& shard_of(const std::string& name) const;
  std::vector<std::unique_ptr<TensorSource>> shards_;
  std::map<std::string, size_t> where_;
  std::map<std::string, TensorInfo> tensors_;
};

}  // namespace qalora::io
