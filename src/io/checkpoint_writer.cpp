#include <ATen/ATen.h>

#include <cstdio>
#include <nlohmann/json.hpp>

#include "qalora/core/error.h"
#include "qalora/io/checkpoint.h"

namespace qalora::io {
namespace {

std::string shard_name(size_t index, size_t count) {
  if (count == 1) return "model.safetensors";
  char text[64];
  std::snprintf(text, sizeof(text), "model-%05zu-of-%05zu.safetensors", index + 1, count);
  return text;
}

}  // namespace

CheckpointWriter::CheckpointWriter(const fs::path& folder, std::vector<PlannedTensor> plan,
                                   const std::map<std::string, std::string>& metadata, uint64_t shard_bytes)
    : folder_(folder),
      metadata_(metadata) {
  QALORA_CHECK(!plan.empty(), "a checkpoint without tensors");
  uint64_t used = 0;
  for (auto& tensor : plan) {
    const uint64_t bytes = tensor.bytes();
    // A tensor larger than a shard gets one of its own.
    if (shards_.empty() || (used > 0 && bytes > shard_bytes - std::min(used, shard_bytes))) {
      shards_.emplace_back();
      used = 0;
    }
    used += bytes;
    shards_.back().push_back(std::move(tensor));
  }
  open_next();
}

CheckpointWriter::~CheckpointWriter() = default;

void CheckpointWriter::open_next() {
  writer_ =
      std::make_unique<SafetensorsWriter>(folder_ / shard_name(current_, shards_.size()), shards_[current_], metadata_);
  written_ = 0;
}

// The shard that the next tensor goes to.
SafetensorsWriter& CheckpointWriter::next_shard(const std::string& name) {
  if (written_ == shards_[current_].size()) {
    writer_->finish();
    ++current_;
    QALORA_CHECK(current_ < shards_.size(), "tensor '", name, "' comes after the last one planned");
    open_next();
  }
  ++written_;
  return *writer_;
}

void CheckpointWriter::write(const std::string& name, std::span<const std::byte> bytes) {
  next_shard(name).write(name, bytes);
}

void CheckpointWriter::write(const std::string& name, const at::Tensor& tensor) {
  next_shard(name).write(name, tensor);
}

void CheckpointWriter::finish() {
  QALORA_CHECK(current_ + 1 == shards_.size(), "shard ", current_ + 1, " of ", shards_.size(),
               " is the last one written");
  writer_->finish();
  if (shards_.size() == 1) return;
  nlohmann::json weight_map = nlohmann::json::object();
  uint64_t total = 0;
  for (size_t shard = 0; shard < shards_.size(); ++shard) {
    for (const auto& tensor : shards_[shard]) {
      weight_map[tensor.name] = shard_name(shard, shards_.size());
      total += tensor.bytes();
    }
  }
  write_json_file(folder_ / "model.safetensors.index.json",
                  {{"metadata", {{"total_size", total}}}, {"weight_map", weight_map}});
}

}  // namespace qalora::io
