#include "qalora/train/training_run.h"

#include <chrono>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numeric>

#include "qalora/core/error.h"
#include "qalora/core/format.h"
#include "qalora/core/interrupted.h"
#include "qalora/core/log.h"
#include "qalora/core/progress.h"
#include "qalora/core/signals.h"
#include "qalora/io/checkpoint.h"
#include "qalora/tensor/accelerator.h"
#include "qalora/tensor/device.h"
#include "qalora/train/loss_curve.h"

namespace qalora::train {

using nlohmann::json;

namespace {

constexpr int64_t kMostSkippedInARow = 3;

// "FILE: lines 1, 2, ...": what a step was made of.
std::string place_of(const std::string& file, const std::vector<int64_t>& lines) {
  std::vector<std::string> names;
  for (size_t i = 0; i < std::min<size_t>(lines.size(), 8); ++i) names.push_back(message(lines[i]));
  return message(file, ": line", names.size() > 1 ? "s " : " ", join(names, ", "), lines.size() > 8 ? ", ..." : "");
}

// null on the CPU
json peak_device_memory(c10::Device device) {
  return device.is_cpu() ? json() : json(tensor::accelerator()->memory(device.index()).peak);
}

}  // namespace

TrainingRun::TrainingRun(const TrainConfig& config, const RunOptions& options, const RunFolder& folder,
                         TrainingSubject& subject, AdamW& optimizer, Trainer& trainer, const TrainingData& data,
                         const RunIdentity& identity)
    : config_(config),
      options_(options),
      folder_(folder),
      subject_(subject),
      optimizer_(optimizer),
      trainer_(trainer),
      data_(data),
      identity_(identity),
      evaluation_due_(trainer.state().evaluation_due) {
  // From the metrics up to the step resumed from, not from best/, which may be of a later step that will be run again.
  for (const json& event : folder_.metrics()) {
    const bool counts = event.value("event", "") == "eval" && event.contains("loss") && event.at("loss").is_number();
    if (counts) best_loss_ = std::min(best_loss_, event.at("loss").get<double>());
  }
}

void TrainingRun::loop() {
  try {
    steps();
  } catch (const IoError& error) {
    fail_saved(error);
  }
}

void TrainingRun::finish() {
  try {
    write_end();
  } catch (const IoError& error) {
    fail_saved(error);
  }
}

// A disk that is full is no loss of what it holds already.
void TrainingRun::fail_saved(const IoError& error) const {
  std::string saved;
  try {
    const std::vector<int64_t> steps = folder_.checkpoints();
    saved = !steps.empty()
                ? message("step ", steps.back(), " is saved, and the same command with --resume goes on from it")
                : message("no step is saved yet; start over with the same command",
                          folder_.holds_work() ? " and --force" : "");
  } catch (const IoError&) {
    throw error;  // the folder itself cannot be read
  }
  throw IoError(message(error.what(), "; ", saved));
}

void TrainingRun::steps() {
  const int64_t first = trainer_.state().step;
  // Without a line at the end: the command's result says how many steps took how long.
  Progress progress("training", config_.steps - first, "steps");
  try {
    if (evaluation_due_) after_step();
    while (trainer_.state().step < config_.steps) {
      one_step();
      progress.update(trainer_.state().step - first, note_);
      after_step();
    }
  } catch (const Interrupted& stop) {
    checkpoint();
    draw_curve();
    log::info(message("stopped at step ", trainer_.state().step, "; continue with the same command and --resume"));
    throw InterruptedAndTold(stop);
  } catch (const DivergedError&) {
    throw;  // the weights went wrong
  } catch (const std::exception&) {
    save_what_is_done();
    throw;
  }
}

// When data, memory or disk fail: the steps so far are not lost. Whatever fails now must not hide why the run ends.
void TrainingRun::save_what_is_done() {
  if (steps_run_ == 0 || !trainer_.whole()) return;
  try {
    checkpoint();
    log::info(message("the run failed at step ", trainer_.state().step,
                      ", its state is saved; continue with the same command and --resume"));
  } catch (const std::exception& error) {
    log::warn(message("the state of step ", trainer_.state().step, " could not be saved: ", error.what()));
  }
}

void TrainingRun::after_step() {
  const int64_t step = trainer_.state().step;
  const bool last = step == config_.steps;
  evaluation_due_ = config_.eval_interval > 0 && (last || step % config_.eval_interval == 0);
  if (evaluation_due_) evaluate();
  evaluation_due_ = false;
  if (last || (config_.checkpoint_interval > 0 && step % config_.checkpoint_interval == 0)) checkpoint();
  throw_if_stopped();
}

// A loss that stays finite can still have gone wrong: one that ends far above where it began has.
void TrainingRun::warn_if_risen() const {
  constexpr std::ptrdiff_t kSteps = 10;  // one step's loss says little where batches are small
  constexpr double kRise = 1.0;          // nats a token
  if (std::ssize(losses_) < 2 * kSteps) return;
  const double first = std::accumulate(losses_.begin(), losses_.begin() + kSteps, 0.0) / kSteps;
  const double last = std::accumulate(losses_.end() - kSteps, losses_.end(), 0.0) / kSteps;
  // Gone wrong within the first steps already: no model that can be tuned stays this far above its own first step.
  const bool risen = last > first + kRise || last > losses_.front() + 2 * kRise;
  if (!risen) return;
  log::warn(message("the loss rose from ", format_fixed(losses_.front(), 2), " to ", format_fixed(last, 2),
                    ": this run has gone wrong; lower learning_rate (it is ", format_number(config_.learning_rate),
                    ")"));
}

void TrainingRun::write_end() {
  warn_if_risen();
  draw_curve();
  const std::string out = subject_.save_final(folder_.path(), config_).string();
  emit({{"event", "end"},
        {"step", trainer_.state().step},
        {"steps_run", steps_run_},
        {"loss", last_loss_ ? json(*last_loss_) : json()},
        {"output", out},
        {"skipped", trainer_.state().skipped},
        {"tokens", trainer_.state().tokens},
        {"seconds", seconds_},
        {"tokens_per_second", seconds_ > 0 ? run_tokens_ / seconds_ : 0.0},
        {"peak_memory_bytes", tensor::peak_memory_bytes()},
        {"peak_device_memory_bytes", peak_device_memory(subject_.model().device())}});
}

void TrainingRun::emit(const json& event) const {
  if (options_.on_event) options_.on_event(event);
}

void TrainingRun::one_step() {
  const auto start = std::chrono::steady_clock::now();
  const int64_t number = trainer_.state().step + 1;
  const StepResult result = trainer_.step();
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  ++steps_run_;
  seconds_ += seconds;
  run_tokens_ += static_cast<double>(result.tokens);
  if (result.skipped) return skipped(number, result);
  last_loss_ = result.loss;
  losses_.push_back(result.loss);
  note_ = message("loss ", format_fixed(result.loss, 4), "  ",
                  format_count(static_cast<int64_t>(run_tokens_ / seconds_)), " tokens/s");
  if (number % config_.log_interval != 0 && number != config_.steps) return;
  record({{"event", "step"},
          {"step", number},
          {"loss", result.loss},
          {"learning_rate", result.learning_rate},
          {"grad_norm", result.gradient_norm},
          {"tokens", result.tokens},
          {"tokens_per_second", static_cast<double>(result.tokens) / seconds},
          {"seconds", seconds}});
}

void TrainingRun::skipped(int64_t number, const StepResult& result) {
  const std::vector<int64_t> lines = data_.lines(number - 1);
  const std::string what = std::isfinite(result.loss) ? "gradient" : "loss", where = place_of(config_.data, lines);
  log::warn(message("step ", number, " skipped: its ", what, " is not finite (", where, ")"));
  record({{"event", "skipped"}, {"step", number}, {"reason", "non-finite " + what}, {"lines", lines}});
  if (trainer_.state().skipped_in_a_row < kMostSkippedInARow) return;
  diverged(message(kMostSkippedInARow, " steps in a row had a non-finite ", what, ", the last was step ", number, " (",
                   where, ")"));
}

// Resuming with another rate is refused, as it would be another run: the way on is a new one.
void TrainingRun::diverged(const std::string& what) const {
  // Checkpoints since the last update hold the weights that went wrong.
  const int64_t last_update = trainer_.state().step - trainer_.state().skipped_in_a_row;
  std::vector<int64_t> saved = folder_.checkpoints();
  std::erase_if(saved, [&](int64_t step) { return step >= last_update; });
  std::string advice =
      message("start a new run with a lower learning_rate (it is ", format_number(config_.learning_rate), ")");
  if (!saved.empty() && !config_.full()) {
    advice += message(" and another --out, from the checkpoint before it went wrong with --initial-adapter ",
                      folder_.checkpoint_path(saved.back()).string());
  }
  throw DivergedError(message("training diverged: ", what, "; ", advice));
}

void TrainingRun::evaluate() {
  const double loss = trainer_.held_out_loss();
  const int64_t step = trainer_.state().step;
  const bool best = std::isfinite(loss) && loss < best_loss_;
  json event = {{"event", "eval"}, {"step", step}, {"best", best}};
  event["loss"] = std::isfinite(loss) ? json(loss) : json("not finite");
  if (best) {
    best_loss_ = loss;
    AtomicFolder folder(folder_.path() / "best", /*replace=*/true);
    subject_.save(folder.staging());
    io::write_json_file(folder.staging() / "best.json", {{"step", step}, {"loss", loss}});
    folder.commit();
  }
  record(event);
  log::info(
      message("step ", step, ": held-out loss ", format_fixed(loss, 4), best ? " (best so far, kept in best/)" : ""));
}

void TrainingRun::checkpoint() {
  TrainState state = trainer_.state();
  if (state.step == saved_step_) return;
  state.evaluation_due = evaluation_due_;
  const fs::path path = folder_.checkpoint_path(state.step);
  save_checkpoint(path, subject_.trained(), optimizer_, state, identity_);
  saved_step_ = state.step;
  folder_.prune_checkpoints(config_.keep_checkpoints);
  draw_curve();
  record({{"event", "checkpoint"}, {"step", state.step}, {"path", path.string()}});
}

void TrainingRun::record(const json& event) {
  folder_.append_metrics(event);
  emit(event);
}

void TrainingRun::draw_curve() const {
  const std::string title = fs::path(config_.data).filename().string() + ", " + config_.method;
  write_text_file(folder_.path() / "loss.svg", loss_curve_svg(folder_.metrics(), title));
}

}  // namespace qalora::train
