#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include "qalora/core/error.h"
#include "qalora/io/checkpoint.h"

namespace qalora::io {
namespace {

void add_shape(Sha256& hash, const TensorInfo& info) {
  for (int64_t dimension : info.shape) hash.update(std::to_string(dimension) + " ");
  hash.update("\n");
}

// Scales count by their values: the same numbers stored in another dtype are the same base.
std::string module_digest(const Checkpoint& checkpoint, const std::string& module) {
  const std::string codes = module + ".weight", scales = module + ".scales";
  const Dtype dtype = checkpoint.info(scales).dtype;
  QALORA_REQUIRE(dtype == Dtype::kF32 || dtype == Dtype::kF16 || dtype == Dtype::kBF16, DataError, checkpoint.file_of(scales).string(),
                 ": tensor '", scales, "' is ", dtype_name(dtype), ", expected F32, F16 or BF16");
  Sha256 hash;
  hash.update(module + "\n");
  add_shape(hash, checkpoint.info(codes));
  add_shape(hash, checkpoint.info(scales));
  hash.update(checkpoint.bytes(codes));
  checkpoint.release(codes);
  if (dtype == Dtype::kF32) {
    hash.update(checkpoint.bytes(scales));
  } else {
    hash.update(tensor_bytes(checkpoint.read(scales).to(at::kFloat)));
  }
  checkpoint.release(scales);
  return hash.hex();
}

}  // namespace

std::string base_fingerprint(const Checkpoint& checkpoint) {
  std::vector<std::string> modules;
  for (const auto& name : checkpoint.names()) {
    const std::string suffix = ".weight";
    if (!name.ends_with(suffix)) continue;
    std::string module = name.substr(0, name.size() - suffix.size());
    if (checkpoint.contains(module + ".scales")) modules.push_back(std::move(module));
  }
  if (modules.empty()) return "";
  // A digest a module, then one over them all: the modules of a large model are hashed side by side.
  std::vector<std::string> digests(modules.size());
  at::parallel_for(0, static_cast<int64_t>(modules.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) digests[i] = module_digest(checkpoint, modules[i]);
  });
  Sha256 all;
  for (const auto& digest : digests) all.update(digest + "\n");
  return all.hex();
}

}  // namespace qalora::io
