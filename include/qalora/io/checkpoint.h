// A model's folder: config.json, one or more safetensors files, the tokenizer's files.
#pragma once

#include <map>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "qalora/io/json_file.h"
#include "qalora/io/safetensors.h"

namespace qalora::io {

struct ModelFiles;

// Read access to a model's tensors by name and to its configuration, in whatever format they lie there (model_files.h).
class Checkpoint {
 public:
  explicit Checkpoint(const fs::path& model);
  ~Checkpoint();

  const fs::path& folder() const { return folder_; }  // what was opened: a folder, or a single file
  // In Hugging Face's terms; DataError when there is none.
  const nlohmann::json& config() const;
  const std::string& config_name() const;  // the file that it comes from, for messages
  const TensorSource& source() const;

  bool contains(const std::string& name) const;
  const TensorInfo& info(const std::string& name) const;  // DataError naming folder and tensor when absent
  at::Tensor read(const std::string& name) const;
  // The stored shape must equal `shape` (DataError with both otherwise).
  at::Tensor read(const std::string& name, at::IntArrayRef shape) const;
  TensorBytes bytes(const std::string& name) const;
  std::vector<TensorBytes> stored(const std::string& name) const;
  void release(const std::string& name) const;
  std::vector<std::string> names() const;  // sorted
  uint64_t total_bytes() const;            // of all tensors
  const fs::path& file_of(const std::string& name) const;
  std::vector<fs::path> files() const;

 private:
  fs::path folder_;
  std::unique_ptr<ModelFiles> files_;
};

// Writes tensors in the plan's order into model.safetensors, or model-0000i-of-0000n.safetensors with an index where
// the total exceeds shard_bytes. `folder` is usually an AtomicFolder's staging().
class CheckpointWriter {
 public:
  CheckpointWriter(const fs::path& folder, std::vector<PlannedTensor> plan,
                   const std::map<std::string, std::string>& metadata,
                   uint64_t shard_bytes = uint64_t{4} * 1000 * 1000 * 1000);
  ~CheckpointWriter();
  void write(const std::string& name, std::span<const std::byte> bytes);
  void write(const std::string& name, const at::Tensor& tensor);  // dtype and shape must match the plan
  void finish();

 private:
  void open_next();
  SafetensorsWriter& next_shard(const std::string& name);
  fs::path folder_;
  std::map<std::string, std::string> metadata_;
  std::vector<std::vector<PlannedTensor>> shards_;
  size_t current_ = 0, written_ = 0;
  std::unique_ptr<SafetensorsWriter> writer_;
};

// "model.layers.0.mlp.up_proj" of "model.layers.0.mlp.up_proj.weight".
std::string module_of(const std::string& tensor);

// What belongs to a model beside its weights and its config.json and is carried along unchanged: the tokenizer's files,
// chat templates, generation_config.json, licences. The names of those in the folder; DataError where one cannot be
// read, be it a link that leads nowhere. Asked before the work, because copying comes last.
std::vector<std::string> sidecars(const fs::path& folder);
void copy_sidecars(const fs::path& from, const fs::path& to);
// Room on the disk for them, for config.json and for the headers of the weights' files.
uint64_t sidecar_bytes(const fs::path& folder);

// SHA-256 over the names, shapes, codes, scales (by value) and order of inputs of every quantised matrix; "" when there
// is none. Offsets are left out: a merge moves them, yet codes and scales identify the base.
std::string base_fingerprint(const Checkpoint& checkpoint);
// SHA-256 over what base_fingerprint leaves out, by value: offsets and dense tensors. An adapter is trained on these
// too: merged into the same codes with other offsets it is another model.
std::string base_state_fingerprint(const Checkpoint& checkpoint);
// Of a dense one: configuration, names, sizes and the first bytes of each tensor, or of each of the pieces that it lies
// in. Reading all of 13 GB to hash it would take longer than loading it.
std::string dense_fingerprint(const Checkpoint& checkpoint);

}  // namespace qalora::io
