// What can be known and refused from the configuration, config.json and the tokenizer, before data or weights are read.
#pragma once

#include <optional>

#include "qalora/model/config.h"
#include "qalora/text/tokenizer.h"
#include "qalora/train/config.h"

namespace qalora::train {

struct Prepared {
  model::LlamaConfig model;
  std::optional<text::Tokenizer> tokenizer;  // nothing where the base has none: format "tokens" goes without

  const text::Tokenizer* tokenizer_or_null() const { return tokenizer ? &*tokenizer : nullptr; }
};

// UserError for a configuration that cannot run or does not fit the base, DataError for a damaged base.
Prepared prepare(const TrainConfig& config);
// UserError when `out` cannot be the run folder.
void require_output(const TrainConfig& config, bool resume, bool force);
// IoError when the disk of `out` has no room for two checkpoints (a new one is written before an old one goes) of so
// many trained numbers and both moments: now, not after hours. Leaves no trace.
void require_room(const TrainConfig& config, int64_t trained_elements);

}  // namespace qalora::train
