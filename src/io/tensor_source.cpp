#include "qalora/io/tensor_source.h"

#include <ATen/ATen.h>

#include <array>

#include "qalora/core/error.h"

namespace qalora::io {
namespace {

struct DtypeRow {
  Dtype dtype;
  const char* name;
  int64_t bytes;
  at::ScalarType type;
};

const std::array<DtypeRow, 13> kDtypes = {{
    {Dtype::kBool, "BOOL", 1, at::kBool},
    {Dtype::kU8, "U8", 1, at::kByte},
    {Dtype::kI8, "I8", 1, at::kChar},
    {Dtype::kI16, "I16", 2, at::kShort},
    {Dtype::kU16, "U16", 2, at::kUInt16},
    {Dtype::kF16, "F16", 2, at::kHalf},
    {Dtype::kBF16, "BF16", 2, at::kBFloat16},
    {Dtype::kI32, "I32", 4, at::kInt},
    {Dtype::kU32, "U32", 4, at::kInt},
    {Dtype::kF32, "F32", 4, at::kFloat},
    {Dtype::kI64, "I64", 8, at::kLong},
    {Dtype::kU64, "U64", 8, at::kUInt64},
    {Dtype::kF64, "F64", 8, at::kDouble},
}};

const DtypeRow& row(Dtype dtype) {
  for (const auto& entry : kDtypes) {
    if (entry.dtype == dtype) return entry;
  }
  throw InternalError("internal error: a dtype without a row in the table");
}

}  // namespace

int64_t dtype_bytes(Dtype dtype) { return row(dtype).bytes; }

std::string dtype_name(Dtype dtype) { return row(dtype).name; }

at::ScalarType scalar_type(Dtype dtype) { return row(dtype).type; }

Dtype dtype_of(at::ScalarType type) {
  for (const auto& entry : kDtypes) {
    if (entry.type == type) return entry.dtype;  // kInt finds I32, which stands before U32
  }
  throw InternalError(message("internal error: no safetensors dtype for ", c10::toString(type)));
}

std::optional<Dtype> dtype_named(std::string_view name) {
  for (const auto& entry : kDtypes) {
    if (name == entry.name) return entry.dtype;
  }
  return std::nullopt;
}

const TensorInfo& TensorSource::info(const std::string& name) const {
  const auto found = tensors().find(name);
  if (found != tensors().end()) return found->second;
  const auto all = files();
  throw DataError(message(all.empty() ? "the model" : all[0].string(), ": there is no tensor '", name, "'"));
}

std::vector<TensorBytes> TensorSource::stored(const std::string& name) const { return {bytes(name)}; }

TensorBytes TensorSource::bytes(const std::string& name) const {
  at::Tensor tensor = read(name);
  const auto span = tensor_bytes(tensor);
  return {std::move(tensor), span};
}

std::span<const std::byte> tensor_bytes(const at::Tensor& tensor) {
  QALORA_CHECK(tensor.is_contiguous(), "only contiguous tensors have their bytes in one piece");
  QALORA_CHECK(tensor.device().is_cpu(), "a tensor's bytes are read on the CPU");
  return {static_cast<const std::byte*>(tensor.const_data_ptr()), tensor.nbytes()};
}

}  // namespace qalora::io
