// A model's folder: config.json, one or more safetensors files, the tokenizer's files.
#pragma once

#include <map>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "qalora/io/safetensors.h"

namespace qalora::io {

// Read access to all tensors of a folder by name. Opens model.safetensors, or every shard that
// model.safetensors.index.json names (no path components; each tensor in the shard that the index says, and nowhere else).
// Other weights (pytorch_model.bin, consolidated.*.pth, *.gguf, Git LFS pointers) are refused with what to do.
class Checkpoint {
 public:
  explicit Checkpoint(const fs::path& folder);

  const fs::path& folder() const { return folder_; }
  bool contains(const std::string& name) const { return where_.contains(name); }
  const TensorInfo& info(const std::string& name) const;  // DataError naming folder and tensor when absent
  // The stored shape must equal `shape` (DataError with both otherwise).
  at::Tensor read(const std::string& name) const;
  at::Tensor read(const std::string& name, at::IntArrayRef shape) const;
  std::span<const std::byte> bytes(const std::string& name) const;
  void release(const std::string& name) const;
  std::vector<std::string> names() const;  // sorted
  uint64_t total_bytes() const;            // of all tensors
  const fs::path& file_of(const std::string& name) const;
  const std::vector<fs::path> files() const;

 private:
  fs::path folder_;
  std::vector<std::unique_ptr<SafetensorsFile>> shards_;
  std::map<std::string, size_t> where_;
};

// Writes tensors in the plan's order into model.safetensors, or model-0000i-of-0000n.safetensors with an index where the
// total exceeds shard_bytes. `folder` is usually an AtomicFolder's staging().
class CheckpointWriter {
 public:
  CheckpointWriter(const fs::path& folder, std::vector<PlannedTensor> plan, const std::map<std::string, std::string>& metadata,
                   uint64_t shard_bytes = uint64_t{4} * 1000 * 1000 * 1000);
  ~CheckpointWriter();
  void write(const std::string& name, std::span<const std::byte> bytes);
  void write(const std::string& name, const at::Tensor& tensor);
  void finish();

 private:
  void open_next();
  fs::path folder_;
  std::map<std::string, std::string> metadata_;
  std::vector<std::vector<PlannedTensor>> shards_;
  size_t current_ = 0, written_ = 0;
  std::unique_ptr<SafetensorsWriter> writer_;
};

nlohmann::json read_json_file(const fs::path& path);  // DataError with file and position for bad JSON or deep nesting
void write_json_file(const fs::path& path, const nlohmann::json& value);

// Copies tokenizer.model, tokenizer.json, tokenizer_config.json, special_tokens_map.json, added_tokens.json,
// chat_template.json, chat_template.jinja, generation_config.json and LICENSE-like files where they exist.
void copy_sidecars(const fs::path& from, const fs::path& to);

// SHA-256 over the names, shapes, codes and scales (by value) of every quantised matrix; "" when there is none. Offsets are left
// out: a merge moves them, yet codes and scales identify the base.
std::string base_fingerprint(const Checkpoint& checkpoint);

}  // namespace qalora::io
