// One optimizer step after the other: token-weighted accumulation, clipping, AdamW, and never a non-finite update.
#pragma once

#include <cstdint>
#include <string>

#include "qalora/model/llama.h"
#include "qalora/train/config.h"
#include "qalora/train/data.h"
#include "qalora/train/optimizer.h"
#include "qalora/train/state.h"

namespace qalora::train {

struct StepResult {
  double loss = 0;           // mean over the step's counted tokens, of all its micro-batches together
  double gradient_norm = 0;  // before clipping
  double learning_rate = 0;
  int64_t tokens = 0;    // real ones, without padding
  bool skipped = false;  // loss or gradient was not finite: the weights did not move
};

class Trainer {
 public:
  Trainer(model::Llama& model, AdamW& optimizer, const TrainingData& data, const TrainConfig& config, TrainState state)
      : model_(model),
        optimizer_(optimizer),
        data_(data),
        config_(config),
        state_(state) {}

  // Runs step state().step and advances the state. Throws Interrupted between micro-batches when a signal came; the
  // state is then that of the last whole step.
  StepResult step();
  // Mean loss of the held-out examples; touches neither weights nor any random number.
  double held_out_loss();
  const TrainState& state() const { return state_; }
  // False when an error struck while weights were being moved: they are of no step then.
  bool whole() const { return !updating_; }

 private:
  model::Llama& model_;
  AdamW& optimizer_;
  const TrainingData& data_;
  const TrainConfig& config_;
  TrainState state_;
  bool updating_ = false;
};

}  // namespace qalora::train
