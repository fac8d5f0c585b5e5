// Saving and resuming, to the bit: what a checkpoint holds is a function of the configuration, the data and the step
// alone.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "qalora/core/file.h"
#include "qalora/io/adapter_file.h"
#include "qalora/model/llama.h"
#include "qalora/train/config.h"
#include "qalora/train/optimizer.h"

namespace qalora::train {

struct TrainState {
  int64_t step = 0;     // optimizer steps done (skipped ones included)
  int64_t updates = 0;  // steps that moved the weights: Adam's t
  int64_t skipped = 0;  // steps left out because of a non-finite loss or gradient
  int64_t skipped_in_a_row = 0;
  int64_t tokens = 0;          // real tokens seen
  int64_t trained_tokens = 0;  // of which counted in the loss
  // A signal came while this step was being evaluated: the resumed run does that first, so that metrics and best/ do
  // not depend on the interruption.
  bool evaluation_due = false;
};

// What must be the same for a resumed run to continue the first one.
struct RunIdentity {
  std::string data_fingerprint;  // of the training file's bytes
  std::string base_fingerprint;  // of the base model
  std::string tokenizer_fingerprint;
  std::string initial_adapter_fingerprint;  // "" for a fresh adapter
  // Keys of the configuration that decide the numbers, as "key=value"; every interval is left out.
  std::vector<std::string> settings;
};

// steps is decisive where the schedule falls towards the last step; compute: the dtype of matrix products.
std::vector<std::string> decisive_settings(const TrainConfig& config, at::ScalarType compute);

// What is trained: an adapter, or the whole model with its config.json (method "full").
struct Trained {
  const io::AdapterFile* adapter = nullptr;
  const model::Llama* model = nullptr;
  const nlohmann::json* config_json = nullptr;
};

// step-N/: adapter files (or model.safetensors in f32 and config.json), optimizer.safetensors, state.json. Complete or
// absent.
void save_checkpoint(const fs::path& folder, const Trained& trained, const AdamW& optimizer, const TrainState& state,
                     const RunIdentity& identity);

// What state.json holds.
struct SavedState {
  TrainState state;
  RunIdentity identity;
  int64_t threads = 0;  // results differ in rounding by the number of threads
};
SavedState read_state(const fs::path& folder);  // UserError when missing, DataError when damaged
// DataError (beginning with `source`) names the first thing in which the two runs differ.
void require_same_run(const std::string& source, const RunIdentity& saved, const RunIdentity& now);
// Copies saved values into the optimizer's parameters (by name, in place) and moments. DataError when anything does not
// fit.
void load_values(const fs::path& folder, const Trained& trained, AdamW& optimizer, int64_t updates);

}  // namespace qalora::train
