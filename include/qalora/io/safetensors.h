// The safetensors format: 8 bytes of header length, a JSON header, the tensors' bytes.
// https://github.com/huggingface/safetensors ; the reader takes what the reference reader takes, except for dtypes in
// which no LLaMA is stored and for headers nested too deep, and refuses duplicate names as the format's text asks.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "qalora/core/file.h"
#include "qalora/io/tensor_source.h"

namespace qalora::io {

class SafetensorsFile : public TensorSource {
 public:
  // Maps and checks the whole header. DataError names the file, and the tensor where there is one.
  explicit SafetensorsFile(const fs::path& path);

  const std::map<std::string, TensorInfo>& tensors() const override { return tensors_; }
  at::Tensor read(const std::string& name) const override;
  TensorBytes bytes(const std::string& name) const override;  // in the map
  void release(const std::string& name) const override;
  const fs::path& file_of(const std::string& name) const override { return map_.path(); }
  std::vector<fs::path> files() const override { return {map_.path()}; }

  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  const fs::path& path() const { return map_.path(); }
  uint64_t file_bytes() const { return map_.bytes().size(); }

 private:
  MappedFile map_;
  std::map<std::string, TensorInfo> tensors_;
  std::map<std::string, std::string> metadata_;
  uint64_t data_begin_ = 0;
};

struct PlannedTensor {
  std::string name;
  Dtype dtype;
  std::vector<int64_t> shape;
  uint64_t bytes() const;
};

// The widest dtype first, otherwise as they are: each tensor then begins at a multiple of its elements' size, as the
// reference writer has it and as readers that map the file need it.
void sort_by_alignment(std::vector<PlannedTensor>& plan);

// Writes one file tensor by tensor: the header is known from the plan, the bytes come in the plan's order.
class SafetensorsWriter {
 public:
  SafetensorsWriter(const fs::path& path, std::vector<PlannedTensor> plan,
                    const std::map<std::string, std::string>& metadata);
  ~SafetensorsWriter();
  // The next tensor of the plan; name and byte count must match it.
  void write(const std::string& name, std::span<const std::byte> bytes);
  void write(const std::string& name, const at::Tensor& tensor);  // dtype and shape must match the plan
  void finish();                                                  // every tensor written; syncs and renames

 private:
  std::vector<PlannedTensor> plan_;
  size_t next_ = 0;
  AtomicFile file_;
};

// All at once, aligned (sort_by_alignment); for adapters and optimizer state. Byte-for-byte a function of its
// arguments.
void write_safetensors(const fs::path& path, const std::map<std::string, at::Tensor>& tensors,
                       const std::map<std::string, std::string>& metadata = {});

}  // namespace qalora::io
