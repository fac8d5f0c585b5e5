// The safetensors format: 8 bytes of header length, a JSON header, the tensors' bytes.
// https://github.com/huggingface/safetensors ; the reader takes what the reference reader takes, except for dtypes in which no
// LLaMA is stored and for headers nested too deep, and refuses duplicate names as the format's text asks.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "qalora/core/file.h"

namespace qalora::io {

enum class Dtype { kBool, kU8, kI8, kI16, kU16, kF16, kBF16, kI32, kU32, kF32, kI64, kU64, kF64 };

int64_t dtype_bytes(Dtype dtype);
std::string dtype_name(Dtype dtype);  // as in the file: "F32", "U32"
Dtype dtype_of(at::ScalarType type);
at::ScalarType scalar_type(Dtype dtype);  // U32 maps to at::kInt: the same 32 bits

struct TensorInfo {
  Dtype dtype = Dtype::kF32;
  std::vector<int64_t> shape;  // slowest dimension first
  uint64_t begin = 0;          // within the data section, bytes
  uint64_t end = 0;

  uint64_t bytes() const { return end - begin; }
};

class SafetensorsFile {
 public:
  // Maps and checks the whole header. DataError names the file, and the tensor where there is one.
  explicit SafetensorsFile(const fs::path& path);

  const std::map<std::string, TensorInfo>& tensors() const { return tensors_; }
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  const fs::path& path() const { return map_.path(); }
  uint64_t file_bytes() const { return map_.bytes().size(); }

  bool contains(const std::string& name) const { return tensors_.contains(name); }
  const TensorInfo& info(const std::string& name) const;          // DataError when absent
  std::span<const std::byte> bytes(const std::string& name) const;  // in the map; may be misaligned
  at::Tensor read(const std::string& name) const;                 // an owning copy in the stored dtype
  void release(const std::string& name) const;                    // its pages may leave memory

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

// The widest dtype first, otherwise as they are: each tensor then begins at a multiple of its elements' size, as the reference writer
// has it and as readers that map the file need it.
void sort_by_alignment(std::vector<PlannedTensor>& plan);

// Writes one file tensor by tensor: the header is known from the plan, the bytes come in the plan's order.
class SafetensorsWriter {
 public:
  SafetensorsWriter(const fs::path& path, std::vector<PlannedTensor> plan, const std::map<std::string, std::string>& metadata);
  ~SafetensorsWriter();
  // The next tensor of the plan; name and byte count must match it.
  void write(const std::string& name, std::span<const std::byte> bytes);
  void write(const std::string& name, const at::Tensor& tensor);  // dtype and shape must match the plan
  void finish();  // every tensor written; syncs and renames

 private:
  std::vector<PlannedTensor> plan_;
  size_t next_ = 0;
  AtomicFile file_;
};

// All at once, aligned (sort_by_alignment); for adapters and optimizer state. Byte-for-byte a function of its arguments.
void write_safetensors(const fs::path& path, const std::map<std::string, at::Tensor>& tensors,
                       const std::map<std::string, std::string>& metadata = {});

// [data, data + nbytes) of a contiguous CPU tensor.
std::span<const std::byte> tensor_bytes(const at::Tensor& tensor);

}  // namespace qalora::io
