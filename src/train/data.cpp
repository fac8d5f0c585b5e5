#include "qalora/train/data.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "qalora/core/error.h"
#include "qalora/core/checked.h"
#include "qalora/core/progress.h"
#include "qalora/core/signals.h"
#include "qalora/tensor/random.h"

namespace qalora::train {

namespace {

// How many batches are sorted together when grouping by length: enough to save padding, few enough to stay shuffled.
constexpr int64_t kGroupedBatches = 50;
// Padded rows end at a multiple of this, so that few shapes occur.
constexpr int64_t kPadMultiple = 8;

void require_tokenizer(const text::Dataset& dataset, const text::Tokenizer* tokenizer, const TrainConfig& config) {
  QALORA_REQUIRE(tokenizer != nullptr || dataset.format() == text::DataFormat::kTokens, UserError, config.model,
                 ": has no tokenizer.model, which ", dataset.path().string(), " (data_format '", text::data_format_name(dataset.format()),
                 "') needs; only data_format 'tokens' goes without");
}

void check_ids(const text::Dataset& dataset, const text::Example& example, int64_t index, int64_t vocab_size) {
  for (const int64_t id : example.input_ids) {
    QALORA_REQUIRE(id >= 0 && id < vocab_size, DataError, dataset.path().string(), ":", dataset.line(index), ": token id ", id,
                   " is outside the model's vocabulary of ", vocab_size);
  }
  for (const int64_t id : example.labels) {
    QALORA_REQUIRE(id == text::kIgnore || (id >= 0 && id < vocab_size), DataError, dataset.path().string(), ":", dataset.line(index),
                   ": label ", id, " is neither ", text::kIgnore, " nor a token id below ", vocab_size);
  }
}

}  // namespace

TrainingData::TrainingData(const TrainConfig& config, const text::Tokenizer* tokenizer, int64_t vocab_size)
    : config_(config), tokenizer_(tokenizer) {
  const text::DataFormat format = text::parse_data_format(config.data_format);
  options_.kind = text::parse_template(config.template_name);
  options_.sequence_length = config.sequence_length;
  options_.train_on_prompt = config.train_on_prompt;
  dataset_ = std::make_unique<text::Dataset>(config.data, format, config.skip_bad_records);
  if (!config.eval_data.empty()) {
    eval_dataset_ = std::make_unique<text::Dataset>(config.eval_data, format, config.skip_bad_records);
  }
  require_tokenizer(*dataset_, tokenizer, config);
  if (eval_dataset_) require_tokenizer(*eval_dataset_, tokenizer, config);
  measure(vocab_size);
  hold_out();
  if (eval_dataset_) measure_held_out(vocab_size);
  QALORA_REQUIRE(!used_.empty(), DataError, config.data, ": none of its ", report_.records, " records is left to train on (",
                 report_.without_target, " without a target within sequence_length ", config.sequence_length, ", ", report_.held_out,
                 " held out)");
}

void TrainingData::measure(int64_t vocab_size) {
  report_.records = dataset_->size();
  report_.bad_records = static_cast<int64_t>(dataset_->bad().size());
  lengths_.resize(dataset_->size());
  std::vector<int32_t> sorted;
  Progress progress("tokenising", dataset_->size(), "records");
  for (int64_t i = 0; i < dataset_->size(); ++i) {
    if (i % 64 == 0) throw_if_stopped();
    const text::Example example = example_of(*dataset_, i);
    check_ids(*dataset_, example, i, vocab_size);
    progress.add();
    report_.cut += example.cut ? 1 : 0;
    report_.cut_tokens += example.cut_tokens;
    if (example.trained_tokens() == 0) {
      ++report_.without_target;
      continue;
    }
    lengths_[i] = static_cast<int32_t>(example.input_ids.size());
    sorted.push_back(lengths_[i]);
    report_.tokens += lengths_[i];
    report_.trained_tokens += example.trained_tokens();
    used_.push_back(i);
  }
  if (sorted.empty()) return;
  std::sort(sorted.begin(), sorted.end());
  report_.median_length = sorted[sorted.size() / 2];
  report_.p95_length = sorted[std::min(sorted.size() - 1, sorted.size() * 95 / 100)];
  report_.longest = sorted.back();
}

void TrainingData::hold_out() {
  if (config_.eval_examples > 0) {
    const int64_t count = static_cast<int64_t>(used_.size());
    QALORA_REQUIRE(config_.eval_examples < count, UserError, "eval_examples is ", config_.eval_examples, ", but ", config_.data, " has only ",
                   count, " examples; keep some for training");
    const auto order = tensor::RandomStream(static_cast<uint64_t>(config_.seed), "held-out").permutation(count);
    for (int64_t i = 0; i < config_.eval_examples; ++i) held_out_.push_back(used_[order[i]]);
    for (const int64_t index : held_out_) {  // the report's tokens are those of one training epoch
      report_.tokens -= lengths_[index];
      report_.trained_tokens -= example_of(*dataset_, index).trained_tokens();
    }
    std::sort(held_out_.begin(), held_out_.end());
    std::erase_if(used_, [&](int64_t index) { return std::binary_search(held_out_.begin(), held_out_.end(), index); });
  }
  report_.examples = static_cast<int64_t>(used_.size());
  report_.held_out = static_cast<int64_t>(held_out_.size());
}

// Reads all of the held-out file before the run starts: a bad id in it must not end the run at its first evaluation.
void TrainingData::measure_held_out(int64_t vocab_size) {
  Progress progress("tokenising held-out", eval_dataset_->size(), "records");
  for (int64_t i = 0; i < eval_dataset_->size(); ++i) {
    if (i % 64 == 0) throw_if_stopped();
    const text::Example example = example_of(*eval_dataset_, i);
    check_ids(*eval_dataset_, example, i, vocab_size);
    if (example.trained_tokens() > 0) held_out_.push_back(i);
    progress.add();
  }
  QALORA_REQUIRE(!held_out_.empty(), DataError, config_.eval_data, ": none of its ", eval_dataset_->size(),
                 " records has a token to score within sequence_length ", config_.sequence_length);
  report_.held_out = static_cast<int64_t>(held_out_.size());
}

text::Example TrainingData::example_of(const text::Dataset& dataset, int64_t index) const {
  const text::Record record = dataset.record(index);
  if (dataset.format() != text::DataFormat::kTokens) return text::make_example(*tokenizer_, record, options_);
  return text::make_token_example(record, options_);
}

const TrainingData::Rows& TrainingData::epoch_rows(int64_t epoch) const {
  const auto cached = epochs_.find(epoch);
  if (cached != epochs_.end()) return cached->second;
  std::vector<int64_t> order = used_;
  if (config_.shuffle) {
    tensor::RandomStream random(static_cast<uint64_t>(config_.seed), "shuffle", static_cast<uint64_t>(epoch));
    const std::vector<int64_t> permutation = random.permutation(static_cast<int64_t>(used_.size()));
    std::transform(permutation.begin(), permutation.end(), order.begin(), [&](int64_t i) { return used_[i]; });
  }
  if (config_.group_by_length) {
    const int64_t span = kGroupedBatches * config_.batch_size;
    for (int64_t begin = 0; begin < static_cast<int64_t>(order.size()); begin += span) {
      const int64_t end = std::min<int64_t>(begin + span, static_cast<int64_t>(order.size()));
      std::stable_sort(order.begin() + begin, order.begin() + end, [&](int64_t a, int64_t b) { return lengths_[a] > lengths_[b]; });
    }
  }
  Rows rows;
  if (config_.packing) {
    std::vector<int64_t> lengths;
    for (const int64_t index : order) lengths.push_back(lengths_[index]);
    for (const std::vector<int64_t>& packed : text::plan_packing(lengths, config_.sequence_length)) {
      rows.emplace_back();
      for (const int64_t i : packed) rows.back().push_back(order[i]);
    }
  } else {
    for (const int64_t index : order) rows.push_back({index});
  }
  while (epochs_.size() > 1) epochs_.erase(epochs_.begin());
  return epochs_[epoch] = std::move(rows);
}

const std::vector<int64_t>& TrainingData::row(int64_t row) const {
  if (epoch_begin_.empty()) epoch_begin_.push_back(0);
  while (epoch_begin_.back() <= row) {
    const int64_t epoch = static_cast<int64_t>(epoch_begin_.size()) - 1;
    // Without packing every epoch has the same number of rows; with it the plan must be made to know.
    const int64_t rows = config_.packing ? static_cast<int64_t>(epoch_rows(epoch).size()) : static_cast<int64_t>(used_.size());
    epoch_begin_.push_back(epoch_begin_.back() + rows);
  }
  const auto after = std::upper_bound(epoch_begin_.begin(), epoch_begin_.end(), row);
  const int64_t epoch = after - epoch_begin_.begin() - 1;
  return epoch_rows(epoch)[row - epoch_begin_[epoch]];
}

text::Batch TrainingData::make_batch(const std::vector<std::vector<int64_t>>& rows, const text::Dataset& dataset) const {
  if (config_.packing) {
    std::vector<std::vector<text::Example>> packed;
    for (const std::vector<int64_t>& row : rows) {
      packed.emplace_back();
      for (const int64_t index : row) packed.back().push_back(example_of(dataset, index));
    }
    return text::pack_batch(packed, config_.sequence_length);
  }
  std::vector<text::Example> examples;
  for (const std::vector<int64_t>& row : rows) examples.push_back(example_of(dataset, row.at(0)));
  int64_t longest = 0;
  for (const text::Example& example : examples) longest = std::max(longest, static_cast<int64_t>(example.input_ids.size()));
  // Not beyond sequence_length, which the model's context bounds.
  return text::pad_batch(examples, ceil_div(longest, kPadMultiple) * kPadMultiple <= config_.sequence_length ? kPadMultiple : 1);
}

std::vector<text::Batch> TrainingData::step(int64_t step) const {
  std::vector<text::Batch> result;
  for (int64_t begin = 0; begin < config_.batch_size; begin += config_.micro_batch_size) {
    std::vector<std::vector<int64_t>> rows;
    for (int64_t i = 0; i < config_.micro_batch_size; ++i) rows.push_back(row(step * config_.batch_size + begin + i));
    result.push_back(make_batch(rows, *dataset_));
  }
  return result;
}

std::vector<int64_t> TrainingData::lines(int64_t step) const {
  std::vector<int64_t> result;
  for (int64_t i = 0; i < config_.batch_size; ++i) {
    for (const int64_t index : row(step * config_.batch_size + i)) result.push_back(dataset_->line(index));
  }
  return result;
}

int64_t TrainingData::held_out_batches() const { return ceil_div(std::ssize(held_out_), config_.micro_batch_size); }

text::Batch TrainingData::held_out_batch(int64_t index) const {
  const int64_t begin = index * config_.micro_batch_size;
  const int64_t end = std::min<int64_t>(std::ssize(held_out_), begin + config_.micro_batch_size);
  std::vector<text::Example> examples;
  for (int64_t i = begin; i < end; ++i) examples.push_back(example_of(held_out_dataset(), held_out_[i]));
  return text::pad_batch(examples, 1);
}

int64_t TrainingData::first_example() const { return used_.front(); }

double TrainingData::epochs(int64_t steps) const {
  const int64_t rows = config_.packing ? static_cast<int64_t>(epoch_rows(0).size()) : static_cast<int64_t>(used_.size());
  return static_cast<double>(steps * config_.batch_size) / static_cast<double>(rows);
}

}  // namespace qalora::train
