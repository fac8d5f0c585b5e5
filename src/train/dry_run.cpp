#include "qalora/core/error.h"
#include "qalora/io/checkpoint.h"
#include "qalora/model/load.h"
#include "qalora/text/batch.h"
#include "qalora/train/finetune.h"
#include "qalora/train/prepare.h"

namespace qalora::train {

namespace {

// The example's text cut where training begins and ends. Each part is what decoding everything up to its end adds:
// decoded alone it would lose a blank at its front.
std::vector<ExampleSpan> spans_of(const text::Tokenizer& tokenizer, const text::Example& example) {
  const auto trained = [&](size_t i) {
    return i > 0 && example.labels[i] != text::kIgnore;
  };  // nothing predicts the first token
  std::vector<ExampleSpan> spans;
  size_t shown = 0;
  for (size_t begin = 0, end = 0; begin < example.input_ids.size(); begin = end) {
    while (end < example.input_ids.size() && trained(end) == trained(begin)) ++end;
    const std::vector<int64_t> so_far(example.input_ids.begin(),
                                      example.input_ids.begin() + static_cast<std::ptrdiff_t>(end));
    const std::string text = tokenizer.decode(so_far, /*skip_special=*/false);
    spans.push_back({trained(begin), text.substr(std::min(shown, text.size()))});
    shown = text.size();
  }
  return spans;
}

}  // namespace

DryRun dry_run(const TrainConfig& config, const RunOptions& options) {
  const Prepared prepared = prepare(config);
  if (!config.out.empty()) require_output(config, options.resume, options.force);
  if (config.initialize != "random") model::check_tensors(io::Checkpoint(config.model), prepared.model);
  const TrainingData data(config, prepared.tokenizer_or_null(), prepared.model.vocab_size);
  DryRun result;
  result.report = data.report();
  result.format = text::data_format_name(data.dataset().format());
  result.format_detected = data.dataset().detected();
  result.epochs = data.epochs(config.steps);
  result.bad_records = data.bad();
  const text::Example example = data.first_example();
  result.example_ids = example.input_ids;
  result.example_labels = example.labels;
  if (prepared.tokenizer) result.example_spans = spans_of(*prepared.tokenizer, example);
  const Workload workload = expected_workload(prepared.model, config, options.compute, options.device);
  TrainConfig resolved = config;
  if (config.micro_batch_size == 0)
    resolved.micro_batch_size = largest_micro_batch(workload, config, data, /*weights_loaded=*/false);
  result.micro_batch_size = resolved.micro_batch_size;
  result.estimate = estimate_run(workload, resolved, data, config.steps);
  // What no memory holds gets no checkpoint; an old run that --force removes makes room.
  if (!config.out.empty() && !options.force && !result.estimate.hopeless())
    require_room(config, workload.trained_elements);
  return result;
}

}  // namespace qalora::train
