// A file of torch.save: a dictionary of tensors, as zip archive (PyTorch 1.6 and newer) or as the row of pickles that
// was written before.
#pragma once

#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "qalora/core/file.h"
#include "qalora/io/pickle.h"
#include "qalora/io/tensor_source.h"

namespace qalora::io {

class TorchFile : public TensorSource {
 public:
  // By a file's first bytes (32 are enough).
  static bool looks_like(std::string_view start);

  // Maps the file and reads its table of tensors; no tensor is copied. A dictionary of tensors may lie under "model",
  // "state_dict", "module" or the like. DataError with what to do for everything else that such files may hold.
  explicit TorchFile(const fs::path& path);

  const std::map<std::string, TensorInfo>& tensors() const override { return tensors_; }
  at::Tensor read(const std::string& name) const override;
  TensorBytes bytes(const std::string& name) const override;  // in the map, where the tensor is contiguous there
  void release(const std::string& name) const override;
  const fs::path& file_of(const std::string& name) const override { return map_.path(); }
  std::vector<fs::path> files() const override { return {map_.path()}; }

  const fs::path& path() const { return map_.path(); }
  bool legacy() const { return legacy_; }
  uint64_t file_bytes() const { return map_.bytes().size(); }

 private:
  using Bytes = std::span<const std::byte>;
  // What a tensor spans in the file, and how it lies there.
  struct View {
    Bytes bytes;
    std::vector<int64_t> strides;  // in elements; empty: contiguous
  };

  void open_zip();
  void open_legacy();
  // Fills tensors_ from the dictionary; storages: the bytes of each of the pickle's storages.
  void collect(const Pickle& pickle, const std::vector<Bytes>& storages);
  void add(const std::string& name, const Pickle& pickle, const PickleTensor& tensor,
           const std::vector<Bytes>& storages);
  const View& view(const std::string& name) const;

  MappedFile map_;
  bool legacy_ = false;
  std::map<std::string, TensorInfo> tensors_;
  std::map<std::string, View> views_;
};

}  // namespace qalora::io
