// A whole fine-tuning run, from the files to the final adapter (or model).
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "qalora/train/config.h"
#include "qalora/train/data.h"
#include "qalora/train/estimate.h"

namespace qalora::train {

struct RunOptions {
  bool resume = false;
  bool force = false;
  at::ScalarType compute = at::kFloat;
  c10::Device device = c10::kCPU;
  std::string resolved_config;  // written to the run folder as config.toml
  // Called for every event ("start", "step", "skipped", "eval", "checkpoint", "end"); INTERFACE of `finetune --json`.
  std::function<void(const nlohmann::json&)> on_event;
};

// A stretch of an example that is trained on as a whole or not at all.
struct ExampleSpan {
  bool trained = false;
  std::string text;
};

struct DryRun {
  DataReport report;
  std::string format;  // "alpaca", ...
  bool format_detected = false;
  double epochs = 0;
  std::vector<text::BadRecord> bad_records;
  std::vector<ExampleSpan> example_spans;  // of the first example, in order; empty without a tokenizer
  std::vector<int64_t> example_ids, example_labels;
  int64_t micro_batch_size = 0;  // as asked, or what fits
  Estimate estimate;
};

// Checks configuration, output, data, tokenizer, and of the weights names and shapes; what takes the weights' values or
// a saved checkpoint to see (another base, other settings on resume) is left to the run.
// Writes nothing; `out` may be empty.
DryRun dry_run(const TrainConfig& config, const RunOptions& options);

// Errors: UserError (configuration), DataError (files), DivergedError (three non-finite steps in a row), Interrupted
// (after saving a checkpoint), IoError.
void finetune(const TrainConfig& config, const RunOptions& options);

}  // namespace qalora::train
