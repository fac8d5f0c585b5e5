// A folder's model.safetensors, or every shard that model.safetensors.index.json names.
#pragma once

#include "qalora/io/shards.h"

namespace qalora::io {

class SafetensorsFolder : public Shards {
 public:
  static bool exists(const fs::path& folder);
  explicit SafetensorsFolder(const fs::path& folder);
};

}  // namespace qalora::io
