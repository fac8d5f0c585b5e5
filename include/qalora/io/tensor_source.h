// Where a model's tensors come from: a file, a folder of shards, or a view that turns another project's layout into
// ours. Every reader of a format is one of these, so that the rooms above see names, shapes and tensors and never a
// format.
//
// The canonical form, which every model reaches before io::Checkpoint hands it on: Hugging Face's names and row order;
// a dense weight "P.weight" F32, F16 or BF16 [out_features, in_features]; a quantised one "P.weight" U32 [out_features,
// words] (a row is one little-endian bit stream of its codes), "P.scales" and "P.biases" (the offsets) F32, F16 or BF16
// [out_features, groups].
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "qalora/core/file.h"

namespace qalora::io {

enum class Dtype { kBool, kU8, kI8, kI16, kU16, kF16, kBF16, kI32, kU32, kF32, kI64, kU64, kF64 };

int64_t dtype_bytes(Dtype dtype);
std::string dtype_name(Dtype dtype);  // as safetensors has it: "F32", "U32"
std::optional<Dtype> dtype_named(std::string_view name);
Dtype dtype_of(at::ScalarType type);
at::ScalarType scalar_type(Dtype dtype);  // U32 maps to at::kInt: the same 32 bits

struct TensorInfo {
  Dtype dtype = Dtype::kF32;
  std::vector<int64_t> shape;  // slowest dimension first
  uint64_t begin = 0;          // bytes, within the data section of a safetensors file; elsewhere 0
  uint64_t end = 0;            // begin + bytes()

  uint64_t bytes() const { return end - begin; }
};

// The bytes of a tensor: in a mapped file (maybe misaligned), or kept by `owner`.
struct TensorBytes {
  at::Tensor owner;  // undefined when the bytes lie in a map
  std::span<const std::byte> span;
};

class TensorSource {
 public:
  virtual ~TensorSource() = default;

  virtual const std::map<std::string, TensorInfo>& tensors() const = 0;
  // An owning, contiguous copy in the dtype and shape that tensors() promises. DataError naming file and tensor.
  virtual at::Tensor read(const std::string& name) const = 0;
  virtual TensorBytes bytes(const std::string& name) const;  // read() unless the source has them in a map
  // Its bytes as they lie in the files, a piece for each place, maybe in another layout than bytes(): to tell tensors
  // apart without making them. { bytes() } unless the source has its own.
  virtual std::vector<TensorBytes> stored(const std::string& name) const;
  virtual void release(const std::string& name) const {}               // its pages may leave memory
  virtual const fs::path& file_of(const std::string& name) const = 0;  // for messages
  virtual std::vector<fs::path> files() const = 0;

  bool contains(const std::string& name) const { return tensors().contains(name); }
  const TensorInfo& info(const std::string& name) const;  // DataError when absent
};

// [data, data + nbytes) of a contiguous CPU tensor.
std::span<const std::byte> tensor_bytes(const at::Tensor& tensor);

}  // namespace qalora::io
