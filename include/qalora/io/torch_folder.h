// A folder whose weights are torch.save's: pytorch_model.bin, the shards that pytorch_model.bin.index.json names, or
// the one .bin or .pt file of weights that lies there under another name (gptq_model-4bit-32g.bin).
#pragma once

#include "qalora/io/shards.h"

namespace qalora::io {

class TorchFolder : public Shards {
 public:
  static bool exists(const fs::path& folder);
  // DataError where several files could be meant.
  explicit TorchFolder(const fs::path& folder);
};

}  // namespace qalora::io
