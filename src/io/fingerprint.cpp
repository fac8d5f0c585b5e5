#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cstring>
#include <functional>

#include "qalora/core/error.h"
#include "qalora/io/checkpoint.h"

namespace qalora::io {
namespace {

void add_shape(Sha256& hash, const TensorInfo& info) {
  for (int64_t dimension : info.shape) hash.update(std::to_string(dimension) + " ");
  hash.update("\n");
}

bool is_float(Dtype dtype) { return dtype == Dtype::kF32 || dtype == Dtype::kF16 || dtype == Dtype::kBF16; }

// Floats count by their values: the same numbers stored in another dtype are the same. In pieces, so that a large
// tensor in 16 bits does not need twice its size in memory.
void add_values(Sha256& hash, const Checkpoint& checkpoint, const std::string& name) {
  constexpr size_t kPiece = size_t{1} << 20;
  const Dtype dtype = checkpoint.info(name).dtype;
  const TensorBytes stored = checkpoint.bytes(name);
  std::span<const std::byte> rest = stored.span;
  if (dtype == Dtype::kF32 || !is_float(dtype)) {
    hash.update(rest);
    rest = {};
  }
  while (!rest.empty()) {
    const auto bytes = rest.first(std::min(kPiece, rest.size()));  // a whole number of elements
    const at::Tensor piece =
        at::empty({static_cast<int64_t>(bytes.size()) / dtype_bytes(dtype)}, at::dtype(scalar_type(dtype)));
    std::memcpy(piece.data_ptr(), bytes.data(), bytes.size());
    hash.update(tensor_bytes(piece.to(at::kFloat)));
    rest = rest.subspan(bytes.size());
  }
  checkpoint.release(name);
}

std::string module_digest(const Checkpoint& checkpoint, const std::string& module) {
  const std::string codes = module + ".weight", scales = module + ".scales";
  const Dtype dtype = checkpoint.info(scales).dtype;
  QALORA_REQUIRE(is_float(dtype), DataError, checkpoint.file_of(scales).string(), ": tensor '", scales, "' is ",
                 dtype_name(dtype), ", expected F32, F16 or BF16");
  Sha256 hash;
  hash.update(module + "\n");
  add_shape(hash, checkpoint.info(codes));
  add_shape(hash, checkpoint.info(scales));
  hash.update(checkpoint.bytes(codes).span);
  checkpoint.release(codes);
  add_values(hash, checkpoint, scales);
  const std::string groups = module + ".g_idx";  // which inputs the codes belong to
  if (checkpoint.contains(groups)) hash.update("g_idx\n"), hash.update(checkpoint.bytes(groups).span);
  return hash.hex();
}

std::string tensor_digest(const Checkpoint& checkpoint, const std::string& name) {
  const TensorInfo& info = checkpoint.info(name);
  Sha256 hash;
  hash.update(message(name, "\n", is_float(info.dtype) ? "float" : dtype_name(info.dtype), "\n"));
  add_shape(hash, info);
  add_values(hash, checkpoint, name);
  return hash.hex();
}

// A digest a name, then one over them all: the tensors of a large model are hashed side by side.
std::string digest_of_all(const std::vector<std::string>& names,
                          const std::function<std::string(const std::string&)>& digest) {
  std::vector<std::string> digests(names.size());
  at::parallel_for(0, static_cast<int64_t>(names.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) digests[static_cast<size_t>(i)] = digest(names[static_cast<size_t>(i)]);
  });
  Sha256 all;
  for (const auto& one : digests) all.update(one + "\n");
  return all.hex();
}

bool is_packed_module(const Checkpoint& checkpoint, const std::string& module) {
  return checkpoint.contains(module + ".scales");
}

}  // namespace

std::string module_of(const std::string& tensor) { return tensor.substr(0, tensor.rfind('.')); }

std::string base_fingerprint(const Checkpoint& checkpoint) {
  std::vector<std::string> modules;
  for (const auto& name : checkpoint.names()) {
    if (name.ends_with(".weight") && is_packed_module(checkpoint, module_of(name))) modules.push_back(module_of(name));
  }
  if (modules.empty()) return "";
  return digest_of_all(modules, [&](const std::string& module) { return module_digest(checkpoint, module); });
}

std::string base_state_fingerprint(const Checkpoint& checkpoint) {
  std::vector<std::string> names;
  for (const auto& name : checkpoint.names()) {
    const bool part = name.ends_with(".weight") || name.ends_with(".scales") || name.ends_with(".g_idx");
    const bool in_base = part && is_packed_module(checkpoint, module_of(name));
    if (!in_base) names.push_back(name);
  }
  return digest_of_all(names, [&](const std::string& name) { return tensor_digest(checkpoint, name); });
}

std::string dense_fingerprint(const Checkpoint& checkpoint) {
  constexpr size_t kSample = 4096;
  Sha256 hash;
  hash.update(checkpoint.config().dump());
  for (const std::string& name : checkpoint.names()) {
    for (const TensorBytes& piece : checkpoint.stored(name)) {
      hash.update(message(name, " ", piece.span.size(), " "));
      hash.update(piece.span.first(std::min(kSample, piece.span.size())));
    }
    checkpoint.release(name);
  }
  return hash.hex();
}

}  // namespace qalora::io
