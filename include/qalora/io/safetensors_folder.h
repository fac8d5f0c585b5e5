// A folder's model.safetensors, or every shard that model.safetensors.index.json names; or the same with another stem
// than "model".
#pragma once

#include "qalora/io/shards.h"

namespace qalora::io {

class SafetensorsFolder : public Shards {
 public:
  static bool exists(const fs::path& folder, const std::string& stem = "model");
  explicit SafetensorsFolder(const fs::path& folder, const std::string& stem = "model");
};

}  // namespace qalora::io
