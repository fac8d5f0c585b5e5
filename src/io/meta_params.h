// params.json of Meta's releases, and the same said as Hugging Face's config.json does.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>

#include "qalora/core/file.h"

namespace qalora::io {

struct MetaParams {
  std::string name;  // the file, for messages
  int64_t dim = 0, layers = 0, heads = 0, kv_heads = 0, head_dim = 0;
  std::optional<int64_t> hidden_dim, vocab_size, context_length, sliding_window;
  double norm_eps = 0, rope_theta = 0;
  bool scaled_rope = false;
  std::optional<double> rope_factor;
};

MetaParams read_meta_params(const fs::path& path);  // DataError
// What only the tensors know: vocabulary, feed-forward width, whether the head is the embedding.
nlohmann::json hugging_face_config(const MetaParams& params, int64_t vocab_size, int64_t intermediate_size,
                                   bool tied_head);

}  // namespace qalora::io
