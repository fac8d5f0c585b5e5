#include "qalora/core/error.h"
#include "qalora/text/batch.h"
#include "qalora/train/finetune.h"
#include "qalora/train/prepare.h"

namespace qalora::train {

namespace {

// The example's text cut where training begins and ends. Each part is what decoding everything up to its end adds: decoded
// alone it would lose a blank at its front.
std::vector<ExampleSpan> spans_of(const text::Tokenizer& tokenizer, const text::Example& example) {
  const auto trained = [&](size_t i) { return i > 0 && example.labels[i] != text::kIgnore; };  // nothing predicts the first token
  std::vector<ExampleSpan> spans;
  size_t shown = 0;
  for (size_t begin = 0, end = 0; begin < example.input_ids.size(); begin = end) {
    while (end < example.input_ids.size() && trained(end) == trained(begin)) ++end;
    const std::vector<int64_t> so_far(example.input_ids.begin(), example.input_ids.begin() + static_cast<std::ptrdiff_t>(end));
    const std::string text = tokenizer.decode(so_far, /*skip_special=*/false);
    spans.push_back({trained(begin), text.substr(std::min(shown, text.size()))});
    shown = text.size();
  }
  return spans;
}

}  // namespace

DryRun dry_run(const TrainConfig& config, at::ScalarType compute) {
  const Prepared prepared = prepare(config);
  const TrainingData data(config, prepared.tokenizer_or_null(), prepared.model.vocab_size);
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
  if (prepared.tokenizer) result.example_spans = spans_of(*prepared.tokenizer, example);
  result.estimate = estimate_run(expected_workload(prepared.model, config, compute), config, data, config.steps);
  return result;
}

}  // namespace qalora::train
