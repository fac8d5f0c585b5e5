#include "qalora/train/finetune.h"

#include <nlohmann/json.hpp>

#include "qalora/core/error.h"
#include "qalora/core/format.h"
#include "qalora/core/log.h"
#include "qalora/tensor/accelerator.h"
#include "qalora/tensor/device.h"
#include "qalora/tensor/dtype.h"
#include "qalora/train/prepare.h"
#include "qalora/train/training_run.h"

namespace qalora::train {

using nlohmann::json;

namespace {

// True when `read` got through; a checkpoint that is damaged or lacks a file is named, so that the one before it is
// taken.
template <typename F>
bool readable(const fs::path& path, F read) {
  std::string reason;
  try {
    read();
    return true;
  } catch (const DataError& error) {
    reason = error.what();
  } catch (const UserError& error) {  // a missing file
    reason = error.what();
  }
  log::warn(message("checkpoint ", path.string(), " is damaged and left out: ", reason));
  return false;
}

void require_steps_left(const std::string& source, const TrainConfig& config, int64_t step) {
  QALORA_REQUIRE(config.steps >= step, UserError, "steps is ", config.steps, ", but the run stands at step ", step,
                 " already (", source, "); give ", step, " or more");
}

void warn_threads(int64_t before) {
  if (before == tensor::threads()) return;
  log::warn(message("the run so far used ", before, " threads, now ", tensor::threads(),
                    ": sums will be rounded differently; give --threads ", before, " to continue it exactly"));
}

// From the newest checkpoint that can be read. Another run's is refused, not passed over.
TrainState resume_from(const RunFolder& folder, const TrainConfig& config, const RunIdentity& identity,
                       TrainingSubject& subject, AdamW& optimizer) {
  std::vector<int64_t> steps = folder.checkpoints();
  for (; !steps.empty(); steps.pop_back()) {
    const fs::path path = folder.checkpoint_path(steps.back());
    SavedState saved;
    if (!readable(path, [&] { saved = read_state(path); })) continue;
    require_same_run(path.string(), saved.identity, identity);
    require_steps_left(path.string(), config, saved.state.step);
    if (!readable(path, [&] { load_values(path, subject.trained(), optimizer, saved.state.updates); })) continue;
    // Damaged ones behind it would count among the checkpoints that are kept.
    folder.remove_checkpoints_after(saved.state.step);
    folder.truncate_metrics(saved.state.step, saved.state.evaluation_due);
    log::info(message("resuming from ", path.string()));
    warn_threads(saved.threads);
    return saved.state;
  }
  throw UserError(message(folder.path().string(), ": holds no complete checkpoint; start over: leave --resume out",
                          folder.holds_work() ? " and give --force" : ""));
}

void log_estimate(const TrainConfig& config, const TrainingData& data, const Estimate& estimate, int64_t first_step) {
  log::info("memory: " + estimate.memory_text());
  log::info(message("time: ", estimate.time_text(), " for ", config.steps - first_step, " steps (",
                    format_fixed(data.epochs(config.steps), 2),
                    " epochs in all); the progress line knows better after a few steps"));
  if (const std::string unfit = estimate.unfit_text(config); !unfit.empty()) log::warn(unfit);
}

Workload workload_of(const TrainingSubject& subject) {
  const model::Llama& model = subject.model();
  return {model.config, model.compute, model.weight_bytes(), subject.trained_elements(), model.device()};
}

// Each weight is dequantised for a product forward and one backward of every micro-batch, and once more where it is
// recomputed. Two 16-bit copies of all of them, where the device has room for them beside the run itself, are written
// once a step instead.
void keep_panels_if_it_pays(const TrainConfig& config, const TrainingData& data, TrainingSubject& subject) {
  const c10::Device device = subject.model().device();
  const bool pays = config.batch_size > config.micro_batch_size || config.gradient_checkpointing;
  if (device.is_cpu() || config.method != "qalora" || config.dropout > 0 || !pays ||
      subject.model().compute == at::kFloat)
    return;
  uint64_t copies = 0;
  for (const model::Linear* linear : subject.model().linears()) {
    if (linear->tiled() == nullptr) continue;
    copies +=
        static_cast<uint64_t>(linear->out_features() * 2 * (2 * linear->in_features() + 2 * linear->groups() + 8));
  }
  const Workload workload = workload_of(subject);
  const int64_t length = config.packing ? config.sequence_length : data.report().longest;
  const MemoryEstimate memory = estimate_memory(workload, config, config.micro_batch_size, length);
  const uint64_t needed = memory.total() - memory.loaded + copies;
  if (static_cast<double>(needed) > 0.8 * static_cast<double>(tensor::accelerator()->memory(device.index()).free))
    return;
  for (model::Linear* linear : subject.model().linears()) linear->keep_panels(true);
  log::info(message("memory: ", format_bytes(copies),
                    " more for 16-bit copies of the weights, which are then dequantised once a step"));
}

json start_event(const TrainConfig& config, const TrainingData& data, const TrainingSubject& subject,
                 int64_t first_step) {
  const Workload workload = workload_of(subject);
  Estimate estimate = estimate_run(workload, config, data, config.steps - first_step);
  estimate.weights_loaded = true;
  if (first_step < config.steps) log_estimate(config, data, estimate, first_step);
  return {{"event", "start"},
          {"step", first_step},
          {"steps", config.steps},
          {"method", config.method},
          {"data", report_json(data.report())},
          {"data_format", text::data_format_name(data.dataset().format())},
          {"dtype", tensor::dtype_name(workload.compute)},
          {"device", workload.device.str()},
          {"threads", tensor::threads()},
          {"micro_batch_size", config.micro_batch_size},
          {"trained_parameters", subject.trained_elements()},
          {"epochs", data.epochs(config.steps)},
          {"estimated_memory_bytes", estimate.memory.total()},
          {"estimated_seconds", estimate.seconds}};
}

void log_data(const TrainConfig& config, const TrainingData& data) {
  const DataReport& report = data.report();
  log::info(message(
      config.data, ": ", format_count(report.examples), " examples (format ",
      text::data_format_name(data.dataset().format()), data.dataset().detected() ? ", detected" : "", "), ",
      format_count(report.cut.examples), " cut", cut_by(report, config), ", ",
      report.split_texts > 0 ? message(report.split_texts, " long texts in ", report.windows, " windows, ") : "",
      report.without_target, " without a target left out, ", report.bad_records, " bad ones skipped, ", report.held_out,
      " held out"));
}

// The number that the run began with, so that sums are rounded alike; 0 where no checkpoint can be read.
int64_t saved_micro_batch(const RunFolder& folder) {
  const std::string key = "micro_batch_size=";
  std::vector<int64_t> steps = folder.checkpoints();
  for (; !steps.empty(); steps.pop_back()) {
    SavedState saved;
    if (!readable(folder.checkpoint_path(steps.back()),
                  [&] { saved = read_state(folder.checkpoint_path(steps.back())); }))
      continue;
    for (const std::string& setting : saved.identity.settings) {
      if (setting.starts_with(key)) return std::max<int64_t>(0, std::atoll(setting.c_str() + key.size()));
    }
  }
  return 0;
}

// micro_batch_size = 0: as many rows as fit, or as the resumed run had.
void choose_micro_batch(TrainConfig& config, TrainingData& data, const TrainingSubject& subject,
                        const RunFolder& folder, bool resume) {
  if (config.micro_batch_size != 0) return;
  config.micro_batch_size = resume ? saved_micro_batch(folder) : 0;
  const bool usable = config.micro_batch_size > 0 && config.batch_size % config.micro_batch_size == 0;
  if (!usable)
    config.micro_batch_size = largest_micro_batch(workload_of(subject), config, data, /*weights_loaded=*/true);
  data.set_micro_batch_size(config.micro_batch_size);
  log::info(message("micro_batch_size: ", config.micro_batch_size,
                    usable ? " rows, as the run began" : " rows fit into the free memory"));
}

}  // namespace

void finetune(const TrainConfig& asked, const RunOptions& options) {
  TrainConfig config = asked;
  const Prepared prepared = prepare(config);
  require_output(config, options.resume, options.force);
  TrainingData data(config, prepared.tokenizer_or_null(), prepared.model.vocab_size);
  log_data(config, data);
  if (config.initial_adapter.empty())
    require_memory(expected_workload(prepared.model, config, options.compute, options.device), config);
  TrainingSubject subject(config, options.compute, options.device);
  AdamW optimizer(subject.parameters(),
                  {config.adam_beta1, config.adam_beta2, config.adam_epsilon, config.weight_decay});
  if (!options.force) require_room(config, subject.trained_elements());  // before there is a folder
  const RunFolder folder(config.out, options.resume, options.force, options.resolved_config);
  if (options.force) require_room(config, subject.trained_elements());  // with that of the run that gave way
  choose_micro_batch(config, data, subject, folder, options.resume);
  const RunIdentity identity{data.fingerprint(), subject.base_fingerprint(),
                             prepared.tokenizer ? prepared.tokenizer->fingerprint() : "",
                             subject.initial_adapter_fingerprint(), decisive_settings(config, options.compute)};
  TrainState state;
  if (options.resume) {
    state = resume_from(folder, config, identity, subject, optimizer);
    folder.write_config(options.resolved_config);
  }
  keep_panels_if_it_pays(config, data, subject);
  Trainer trainer(subject.model(), optimizer, data, config, state);
  TrainingRun run(config, options, folder, subject, optimizer, trainer, data, identity);
  run.emit(start_event(config, data, subject, state.step));
  run.loop();
  run.finish();
}

}  // namespace qalora::train
