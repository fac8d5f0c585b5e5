// The loop around Trainer: events, evaluation, checkpoints, the final files.
#pragma once

#include <cstdint>
#include <limits>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "qalora/core/error.h"
#include "qalora/train/finetune.h"
#include "qalora/train/run_folder.h"
#include "qalora/train/subject.h"
#include "qalora/train/trainer.h"

namespace qalora::train {

class TrainingRun {
 public:
  // Everything is kept by reference and must live as long. The best held-out loss so far is read from the folder's
  // metrics.
  TrainingRun(const TrainConfig& config, const RunOptions& options, const RunFolder& folder, TrainingSubject& subject,
              AdamW& optimizer, Trainer& trainer, const TrainingData& data, const RunIdentity& identity);

  // Runs the steps that are left. Throws Interrupted after a checkpoint was saved. An IoError says which step is saved.
  void loop();
  // The picture and the final adapter or model.
  void finish();
  void emit(const nlohmann::json& event) const;

 private:
  void steps();
  void write_end();
  [[noreturn]] void fail_saved(const IoError& error) const;
  void one_step();
  void after_step();  // what is due at the step just done: evaluation, checkpoint
  void skipped(int64_t number, const StepResult& result);
  [[noreturn]] void diverged(const std::string& what) const;
  void evaluate();
  void checkpoint();
  void save_what_is_done();
  void record(const nlohmann::json& event);
  void draw_curve() const;
  void warn_if_risen() const;

  const TrainConfig& config_;
  const RunOptions& options_;
  const RunFolder& folder_;
  TrainingSubject& subject_;
  AdamW& optimizer_;
  Trainer& trainer_;
  const TrainingData& data_;
  const RunIdentity& identity_;
  double best_loss_ = std::numeric_limits<double>::infinity();
  std::optional<double> last_loss_;
  std::vector<double> losses_;  // of the steps run here
  double seconds_ = 0, run_tokens_ = 0;
  int64_t steps_run_ = 0;
  int64_t saved_step_ = -1;
  bool evaluation_due_;
  std::string note_;
};

}  // namespace qalora::train
