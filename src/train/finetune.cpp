#include "qalora/train/finetune.h"

#include <ATen/ATen.h>

#include <chrono>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "qalora/core/error.h"
#include "qalora/core/format.h"
#include "qalora/core/log.h"
#include "qalora/core/progress.h"
#include "qalora/core/signals.h"
#include "qalora/io/checkpoint.h"
#include "qalora/tensor/device.h"
#include "qalora/train/estimate.h"
#include "qalora/train/loss_curve.h"
#include "qalora/train/run_folder.h"
#include "qalora/train/subject.h"
#include "qalora/train/trainer.h"

namespace qalora::train {

using nlohmann::json;

namespace {

constexpr int64_t kMostSkippedInARow = 3;

std::optional<text::Tokenizer> find_tokenizer(const fs::path& folder) {
  if (!text::Tokenizer::exists(folder)) return std::nullopt;
  return text::Tokenizer(folder);
}

void require_valid(const TrainConfig& config) {
  const std::vector<std::string> problems = validate(config);
  QALORA_REQUIRE(problems.empty(), UserError, join(problems, "\n"));
}

// What can be known from config.json and the tokenizer, before the data are read.
void require_base(const TrainConfig& config, const model::LlamaConfig& model, const std::optional<text::Tokenizer>& tokenizer) {
  QALORA_REQUIRE(config.method != "qalora" || model.quantization, UserError, config.model,
                 ": is a dense checkpoint, method 'qalora' trains on a quantised one; run 'qalora quantize' first, or set method = \"lora\"");
  QALORA_REQUIRE(config.method == "qalora" || !model.quantization, UserError, config.model, ": is quantised, method '", config.method,
                 "' needs a dense checkpoint; give that, or set method = \"qalora\"");
  QALORA_REQUIRE(!tokenizer || tokenizer->vocab_size() <= model.vocab_size, DataError, config.model, ": the tokenizer has ",
                 tokenizer->vocab_size(), " pieces, more than the ", model.vocab_size, " rows of the embedding; do they belong together?");
}

void require_context(const TrainConfig& config, const model::LlamaConfig& model) {
  QALORA_REQUIRE(config.sequence_length <= model.context_length, UserError, "sequence_length is ", config.sequence_length, ", but ", config.model,
                 " reads at most ", model.context_length, " tokens; set sequence_length to that or less");
}

json report_json(const DataReport& report) {
  return {{"records", report.records}, {"bad_records", report.bad_records}, {"examples", report.examples}, {"held_out", report.held_out},
          {"cut", report.cut}, {"cut_tokens", report.cut_tokens}, {"without_target", report.without_target}, {"tokens", report.tokens},
          {"trained_tokens", report.trained_tokens}, {"median_length", report.median_length}, {"p95_length", report.p95_length},
          {"longest", report.longest}};
}

// The loop around Trainer: events, evaluation, checkpoints, the final files.
class Run {
 public:
  Run(const TrainConfig& config, const RunOptions& options, RunFolder& folder, TrainingSubject& subject, AdamW& optimizer, Trainer& trainer,
      const TrainingData& data, const RunIdentity& identity)
      : config_(config), options_(options), folder_(folder), subject_(subject), optimizer_(optimizer), trainer_(trainer), data_(data),
        identity_(identity) {
    const fs::path best = folder_.path() / "best" / "best.json";
    if (options.resume && fs::exists(best)) best_loss_ = io::read_json_file(best).value("loss", best_loss_);
  }

  void loop() {
    const int64_t first = trainer_.state().step;
    Progress progress("training", config_.steps - first, "steps");
    try {
      while (trainer_.state().step < config_.steps) {
        one_step();
        progress.update(trainer_.state().step - first, note_);
        const int64_t step = trainer_.state().step;
        const bool last = step == config_.steps;
        if (config_.eval_interval > 0 && (last || step % config_.eval_interval == 0)) evaluate();
        if (last || (config_.checkpoint_interval > 0 && step % config_.checkpoint_interval == 0)) checkpoint();
        throw_if_stopped();
      }
    } catch (const Interrupted&) {
      checkpoint();
      draw_curve();
      log::info(message("stopped at step ", trainer_.state().step, "; continue with the same command and --resume"));
      throw;
    }
    progress.finish();
  }

  void finish() {
    draw_curve();
    const fs::path out = subject_.save_final(folder_.path(), config_);
    const double seconds = seconds_;
    emit({{"event", "end"}, {"step", trainer_.state().step}, {"loss", last_loss_}, {"output", out.string()}, {"skipped", trainer_.state().skipped},
          {"tokens", trainer_.state().tokens}, {"seconds", seconds}, {"tokens_per_second", seconds > 0 ? run_tokens_ / seconds : 0.0},
          {"peak_memory_bytes", tensor::peak_memory_bytes()}});
  }

  void emit(const json& event) {
    if (options_.on_event) options_.on_event(event);
  }

 private:
  void one_step() {
    const auto start = std::chrono::steady_clock::now();
    const int64_t number = trainer_.state().step + 1;
    const StepResult result = trainer_.step();
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    seconds_ += seconds;
    run_tokens_ += static_cast<double>(result.tokens);
    if (result.skipped) return skipped(number, result);
    last_loss_ = result.loss;
    note_ = message("loss ", format_fixed(result.loss, 4), "  ", format_count(static_cast<int64_t>(run_tokens_ / seconds_)), " tokens/s");
    if (number % config_.log_interval != 0 && number != config_.steps) return;
    record({{"event", "step"}, {"step", number}, {"loss", result.loss}, {"learning_rate", result.learning_rate},
            {"grad_norm", result.gradient_norm}, {"tokens", result.tokens}, {"tokens_per_second", static_cast<double>(result.tokens) / seconds},
            {"seconds", seconds}});
  }

  void skipped(int64_t number, const StepResult& result) {
    const std::vector<int64_t> lines = data_.lines(number - 1);
    const std::string what = std::isfinite(result.loss) ? "gradient" : "loss";
    std::vector<std::string> names;
    for (size_t i = 0; i < std::min<size_t>(lines.size(), 8); ++i) names.push_back(message(lines[i]));
    const std::string where = message(config_.data, ": line", names.size() > 1 ? "s " : " ", join(names, ", "), lines.size() > 8 ? ", ..." : "");
    log::warn(message("step ", number, " skipped: its ", what, " is not finite (", where, ")"));
    record({{"event", "skipped"}, {"step", number}, {"reason", "non-finite " + what}, {"lines", lines}});
    QALORA_REQUIRE(trainer_.state().skipped_in_a_row < kMostSkippedInARow, DivergedError, "training diverged: ", kMostSkippedInARow,
                   " steps in a row had a non-finite ", what, ", the last was step ", number, " (", where, "); lower learning_rate (it is ",
                   config_.learning_rate, ") and resume from the last checkpoint");
  }

  void evaluate() {
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
    log::info(message("step ", step, ": held-out loss ", format_fixed(loss, 4), best ? " (best so far, kept in best/)" : ""));
  }

  void checkpoint() {
    const int64_t step = trainer_.state().step;
    if (step == saved_step_) return;
    const fs::path path = folder_.checkpoint_path(step);
    save_checkpoint(path, subject_.trained(), optimizer_, trainer_.state(), identity_);
    saved_step_ = step;
    folder_.prune_checkpoints(config_.keep_checkpoints);
    draw_curve();
    record({{"event", "checkpoint"}, {"step", step}, {"path", path.string()}});
  }

  void record(const json& event) {
    folder_.append_metrics(event);
    emit(event);
  }

  void draw_curve() const {
    write_text_file(folder_.path() / "loss.svg", loss_curve_svg(folder_.metrics(), fs::path(config_.data).filename().string() + ", " + config_.method));
  }

  const TrainConfig& config_;
  const RunOptions& options_;
  RunFolder& folder_;
  TrainingSubject& subject_;
  AdamW& optimizer_;
  Trainer& trainer_;
  const TrainingData& data_;
  const RunIdentity& identity_;
  double best_loss_ = std::numeric_limits<double>::infinity();
  double last_loss_ = 0, seconds_ = 0, run_tokens_ = 0;
  int64_t saved_step_ = -1;
  std::string note_;
};

// The newest checkpoint that can be read; a damaged one is named and the one before it taken.
TrainState resume_from(const RunFolder& folder, const RunIdentity& identity, TrainingSubject& subject, AdamW& optimizer) {
  std::vector<int64_t> steps = folder.checkpoints();
  for (; !steps.empty(); steps.pop_back()) {
    const fs::path path = folder.checkpoint_path(steps.back());
    const TrainState state = read_state(path, identity);
    try {
      load_values(path, subject.trained(), optimizer, state.updates);
      log::info(message("resuming from ", path.string()));
      return state;
    } catch (const DataError& error) {
      log::warn(message("checkpoint is damaged and left out: ", error.what()));
    }
  }
  throw UserError(message(folder.path().string(), ": holds no complete checkpoint; leave --resume out and start over with --force"));
}

json start_event(const TrainConfig& config, const TrainingData& data, const TrainingSubject& subject, int64_t first_step,
                 at::ScalarType compute) {
  const DataReport& report = data.report();
  const int64_t length = config.packing ? config.sequence_length : report.longest;
  const MemoryEstimate memory = estimate_memory(subject.model(), config, config.micro_batch_size, length, subject.trained_elements());
  const double mean = static_cast<double>(report.tokens) / static_cast<double>(report.examples);
  const double row_tokens = config.packing ? static_cast<double>(config.sequence_length) : mean;
  const double speed = measure_flops(compute, std::min<int64_t>(1024, subject.model().config.hidden_size * 4));
  const double work = flops_per_token(subject.model(), config, length) * row_tokens * static_cast<double>(config.batch_size * (config.steps - first_step));
  const uint64_t available = tensor::available_memory_bytes();
  log::info(message("memory: about ", format_bytes(memory.total()), " (weights ", format_bytes(memory.weights), ", trained ",
                    format_bytes(memory.trained), ", activations ", format_bytes(memory.activations), ", scratch ",
                    format_bytes(memory.scratch), "), ", format_bytes(available), " available"));
  log::info(message("time: roughly ", format_duration(work / speed), " for ", config.steps - first_step, " steps (", format_fixed(data.epochs(config.steps), 2),
                    " epochs in all) at ", format_fixed(speed / 1e9, 0), " GFLOP/s; the progress line knows better after a few steps"));
  if (memory.activations + memory.trained + memory.scratch > available) {
    log::warn("this may not fit: lower micro_batch_size or sequence_length, or set gradient_checkpointing = true");
  }
  return {{"event", "start"}, {"step", first_step}, {"steps", config.steps}, {"method", config.method}, {"data", report_json(report)},
          {"data_format", text::data_format_name(data.dataset().format())}, {"trained_parameters", subject.trained_elements()},
          {"estimated_memory_bytes", memory.total()}, {"estimated_seconds", work / speed}, {"epochs", data.epochs(config.steps)}};
}

}  // namespace

DryRun dry_run(const TrainConfig& config) {
  require_valid(config);
  const model::LlamaConfig model = model::read_config(config.model);
  require_context(config, model);
  const auto tokenizer = find_tokenizer(config.model);
  require_base(config, model, tokenizer);
  const TrainingData data(config, tokenizer ? &*tokenizer : nullptr, model.vocab_size);
  DryRun result;
  result.report = data.report();
  result.format = text::data_format_name(data.dataset().format());
  result.format_detected = data.dataset().detected();
  result.epochs = data.epochs(config.steps);
  for (const text::BadRecord& bad : data.dataset().bad()) {
    if (result.bad_records.size() < 5) result.bad_records.push_back(message(config.data, ":", bad.line, ": ", bad.reason));
  }
  const text::Example example = data.example(data.first_example());
  result.example_ids = example.input_ids;
  result.example_labels = example.labels;
  if (tokenizer) {
    std::vector<int64_t> prompt, answer;
    for (size_t i = 0; i < example.input_ids.size(); ++i) {
      (example.labels[i] == text::kIgnore ? prompt : answer).push_back(example.input_ids[i]);
    }
    result.example_prompt = tokenizer->decode(prompt, /*skip_special=*/false);
    result.example_answer = tokenizer->decode(answer, /*skip_special=*/false);
  }
  return result;
}

void finetune(const TrainConfig& config, const RunOptions& options) {
  require_valid(config);
  QALORA_REQUIRE(!config.out.empty(), UserError, "out is missing: the run folder (--out DIR)");
  const model::LlamaConfig model_config = model::read_config(config.model);
  require_context(config, model_config);
  RunFolder::require_usable(config.out, options.resume, options.force);
  const auto tokenizer = find_tokenizer(config.model);
  require_base(config, model_config, tokenizer);
  const TrainingData data(config, tokenizer ? &*tokenizer : nullptr, model_config.vocab_size);
  const DataReport& report = data.report();
  log::info(message(config.data, ": ", format_count(report.examples), " examples (format ", text::data_format_name(data.dataset().format()),
                    data.dataset().detected() ? ", detected" : "", "), ", report.cut, " cut to ", config.sequence_length, " tokens, ",
                    report.without_target, " without a target left out, ", report.bad_records, " bad ones skipped, ", report.held_out, " held out"));
  TrainingSubject subject(config, options.compute);
  AdamW optimizer(subject.parameters(), {config.adam_beta1, config.adam_beta2, config.adam_epsilon, config.weight_decay});
  const RunIdentity identity{data.fingerprint(), subject.base_fingerprint(), tokenizer ? tokenizer->fingerprint() : "", decisive_settings(config)};
  RunFolder folder(config.out, options.resume, options.force);
  TrainState state;
  if (options.resume) {
    state = resume_from(folder, identity, subject, optimizer);
    folder.truncate_metrics(state.step);
  }
  folder.write_config(options.resolved_config);
  Trainer trainer(subject.model(), optimizer, data, config, state);
  Run run(config, options, folder, subject, optimizer, trainer, data, identity);
  run.emit(start_event(config, data, subject, state.step, options.compute));
  run.loop();
  run.finish();
}

}  // namespace qalora::train
