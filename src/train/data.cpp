#include "qalora/train/data.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <numeric>

#include "qalora/core/checked.h"
#include "qalora/core/error.h"
#include "qalora/core/format.h"
#include "qalora/core/log.h"
#include "qalora/core/progress.h"
#include "qalora/core/signals.h"
#include "qalora/tensor/random.h"

namespace qalora::train {

namespace {

// How many batches are sorted together when grouping by length: enough to save padding, few enough to stay shuffled.
constexpr int64_t kGroupedBatches = 50;
// Padded rows end at a multiple of this, so that few shapes occur.
constexpr int64_t kPadMultiple = 8;
// Ids of texts kept in memory: 64 MB.
constexpr int64_t kCachedIds = int64_t{8} << 20;

void require_tokenizer(const text::Dataset& dataset, const text::Tokenizer* tokenizer, const TrainConfig& config) {
  QALORA_REQUIRE(tokenizer != nullptr || dataset.format() == text::DataFormat::kTokens, UserError, config.model,
                 ": has no tokenizer.model or tokenizer.json, which ", dataset.path().string(), " (data_format '",
                 text::data_format_name(dataset.format()), "') needs; only data_format 'tokens' goes without");
}

// Why the example cannot be trained on, or "".
std::string id_fault(const text::Example& example, int64_t vocab_size) {
  for (const int64_t id : example.input_ids) {
    if (id < 0 || id >= vocab_size)
      return message("token id ", id, " is outside the model's vocabulary of ", vocab_size);
  }
  for (const int64_t id : example.labels) {
    const bool known = id == text::kIgnore || (id >= 0 && id < vocab_size);
    if (!known) return message("label ", id, " is neither ", text::kIgnore, " nor a token id below ", vocab_size);
  }
  return "";
}

}  // namespace

TrainingData::TrainingData(const TrainConfig& config, const text::Tokenizer* tokenizer, int64_t vocab_size)
    : config_(config),
      tokenizer_(tokenizer) {
  options_.kind = text::parse_template(config.template_name);
  options_.sequence_length = config.sequence_length;
  options_.source_length = config.source_length;
  options_.target_length = config.target_length;
  options_.train_on_prompt = config.train_on_prompt;
  training_ = open(config.data);
  if (!config.eval_data.empty()) separate_ = open(config.eval_data);
  if (options_.kind == text::TemplateKind::kChat) say_chat_style();
  measure(vocab_size);
  hold_out();
  if (separate_.dataset) measure_held_out(vocab_size);
  QALORA_REQUIRE(!used_.empty(), DataError, config.data, ": none of its ", report_.records,
                 " records is left to train on (", report_.without_target, " without a target within sequence_length ",
                 config.sequence_length, ", ", report_.bad_records, " bad, ", report_.held_out, " held out)");
}

void TrainingData::say_chat_style() const {
  const text::DataFormat format = dataset().format();
  if (format == text::DataFormat::kTokens || format == text::DataFormat::kText) return;  // no template comes near them
  const std::string name = text::chat_template_name(*tokenizer_);
  if (!name.empty()) return log::info(message("template chat: ", config_.model, " has ", name, "'s"));
  log::warn(message("template chat: ", config_.model,
                    " has no chat_template; turns are written with \"### Human:\" and ", "\"### Assistant:\""));
}

TrainingData::Source TrainingData::open(const std::string& path) const {
  Source source;
  source.dataset =
      std::make_unique<text::Dataset>(path, text::parse_data_format(config_.data_format), config_.skip_bad_records);
  require_tokenizer(*source.dataset, tokenizer_, config_);
  return source;
}

// Encodes every record once and keeps the pieces that have something to train on.
void TrainingData::read_all(Source& source, const char* what, int64_t vocab_size, std::vector<text::BadRecord>& bad,
                            const OnExample& on_example) {
  const text::Dataset& dataset = *source.dataset;
  bad = dataset.bad();
  Progress progress(what, dataset.size(), "records");
  for (int64_t i = 0; i < dataset.size(); ++i) {
    if (i % 64 == 0) throw_if_stopped();
    progress.add();
    int64_t windows = 1;
    for (int64_t window = 0; window < windows; ++window) {
      Piece piece{i, static_cast<int32_t>(window), 0};
      const text::Example example = example_of(source, piece);
      windows = example.windows;
      if (const std::string fault = id_fault(example, vocab_size); !fault.empty()) {
        QALORA_REQUIRE(config_.skip_bad_records, DataError, dataset.path().string(), ":", dataset.line(i), ": ", fault,
                       "; is it of another model? Leave such records out with --skip-bad-records");
        bad.push_back({dataset.line(i), fault});
        break;
      }
      on_example(example);
      piece.length = static_cast<int32_t>(example.input_ids.size());
      if (example.trained_tokens() > 0) source.pieces.push_back(piece);
    }
  }
  text::warn_of_bad(dataset, bad);
}

void TrainingData::measure(int64_t vocab_size) {
  read_all(training_, "tokenising", vocab_size, bad_, [&](const text::Example& example) {
    report_.cut.add(example.cut_tokens());
    report_.cut_source.add(example.cut_source);
    report_.cut_target.add(example.cut_target);
    report_.cut_sequence.add(example.cut_sequence);
    report_.without_target += example.trained_tokens() == 0 ? 1 : 0;
    report_.windows += example.windows > 1 ? 1 : 0;
    if (example.trained_tokens() == 0) return;
    report_.tokens += std::ssize(example.input_ids);
    report_.trained_tokens += example.trained_tokens();
  });
  const std::vector<Piece>& pieces = training_.pieces;
  report_.bad_records = std::ssize(bad_);
  report_.records = training_.dataset->size() + std::ssize(training_.dataset->bad()) - report_.bad_records;
  used_.resize(pieces.size());
  std::iota(used_.begin(), used_.end(), 0);
  report_.split_texts =
      std::count_if(pieces.begin(), pieces.end(), [](const Piece& piece) { return piece.window == 1; });
  if (pieces.empty()) return;
  std::vector<int32_t> sorted;
  for (const Piece& piece : pieces) sorted.push_back(piece.length);
  std::sort(sorted.begin(), sorted.end());
  report_.median_length = sorted[sorted.size() / 2];
  report_.p95_length = sorted[std::min(sorted.size() - 1, sorted.size() * 95 / 100)];
  report_.longest = sorted.back();
}

void TrainingData::hold_out() {
  if (config_.eval_examples > 0) {
    const int64_t count = std::ssize(used_);
    QALORA_REQUIRE(config_.eval_examples < count, UserError, "eval_examples is ", config_.eval_examples, ", but ",
                   config_.data, " has only ", count, " examples; keep some for training");
    const auto order = tensor::RandomStream(static_cast<uint64_t>(config_.seed), "held-out").permutation(count);
    for (int64_t i = 0; i < config_.eval_examples; ++i) held_out_.push_back(used_[order[i]]);
    std::sort(held_out_.begin(), held_out_.end());
    for (const int64_t index : held_out_) {  // the report's tokens are those of one training epoch
      report_.tokens -= training_.pieces[index].length;
      report_.trained_tokens -= example_of(training_, index).trained_tokens();
    }
    std::erase_if(used_, [&](int64_t index) { return std::binary_search(held_out_.begin(), held_out_.end(), index); });
  }
  report_.examples = std::ssize(used_);
  report_.held_out = std::ssize(held_out_);
}

// Reads all of the held-out file before the run starts: a bad id in it must not end the run at its first evaluation.
void TrainingData::measure_held_out(int64_t vocab_size) {
  std::vector<text::BadRecord> bad;
  read_all(separate_, "tokenising held-out", vocab_size, bad, [](const text::Example&) {});
  held_out_.resize(separate_.pieces.size());
  std::iota(held_out_.begin(), held_out_.end(), 0);
  QALORA_REQUIRE(!held_out_.empty(), DataError, config_.eval_data, ": none of its ", separate_.dataset->size(),
                 " records has a token to score within sequence_length ", config_.sequence_length);
  separate_.dataset->fingerprint();  // so that a file only touched during the run is told from a changed one
  report_.held_out = std::ssize(held_out_);
}

text::Example TrainingData::window_of(const Source& source, const Piece& piece) const {
  const auto known = source.texts.find(piece.record);
  if (known != source.texts.end()) return text::text_window(known->second, piece.window, config_.sequence_length);
  std::vector<int64_t> ids = text::text_ids(*tokenizer_, source.dataset->record(piece.record).text);
  const text::Example example = text::text_window(ids, piece.window, config_.sequence_length);
  if (example.windows == 1) return example;
  if (source.cached_ids + std::ssize(ids) > kCachedIds) {
    source.texts.clear();
    source.cached_ids = 0;
  }
  source.cached_ids += std::ssize(ids);
  source.texts[piece.record] = std::move(ids);
  return example;
}

text::Example TrainingData::example_of(const Source& source, const Piece& piece) const {
  switch (source.dataset->format()) {
    case text::DataFormat::kText: return window_of(source, piece);
    case text::DataFormat::kTokens: return text::make_token_example(source.dataset->record(piece.record), options_);
    default: return text::make_example(*tokenizer_, source.dataset->record(piece.record), options_);
  }
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
  const auto length_of = [&](int64_t piece) { return training_.pieces[piece].length; };
  if (config_.group_by_length) {
    const int64_t span = kGroupedBatches * config_.batch_size;
    for (int64_t begin = 0; begin < static_cast<int64_t>(order.size()); begin += span) {
      const int64_t end = std::min<int64_t>(begin + span, static_cast<int64_t>(order.size()));
      std::stable_sort(order.begin() + begin, order.begin() + end,
                       [&](int64_t a, int64_t b) { return length_of(a) > length_of(b); });
    }
  }
  Rows rows;
  if (config_.packing) {
    std::vector<int64_t> lengths;
    for (const int64_t index : order) lengths.push_back(length_of(index));
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
    const int64_t rows =
        config_.packing ? static_cast<int64_t>(epoch_rows(epoch).size()) : static_cast<int64_t>(used_.size());
    epoch_begin_.push_back(epoch_begin_.back() + rows);
  }
  const auto after = std::upper_bound(epoch_begin_.begin(), epoch_begin_.end(), row);
  const int64_t epoch = after - epoch_begin_.begin() - 1;
  return epoch_rows(epoch)[row - epoch_begin_[epoch]];
}

text::Batch TrainingData::make_batch(const std::vector<std::vector<int64_t>>& rows) const {
  if (config_.packing) {
    std::vector<std::vector<text::Example>> packed;
    for (const std::vector<int64_t>& row : rows) {
      packed.emplace_back();
      for (const int64_t index : row) packed.back().push_back(example_of(training_, index));
    }
    return text::pack_batch(packed, config_.sequence_length);
  }
  std::vector<text::Example> examples;
  for (const std::vector<int64_t>& row : rows) examples.push_back(example_of(training_, row.at(0)));
  int64_t longest = 0;
  for (const text::Example& example : examples)
    longest = std::max(longest, static_cast<int64_t>(example.input_ids.size()));
  // Not beyond sequence_length, which the model's context bounds.
  return text::pad_batch(examples,
                         ceil_div(longest, kPadMultiple) * kPadMultiple <= config_.sequence_length ? kPadMultiple : 1);
}

std::vector<text::Batch> TrainingData::step(int64_t step) const {
  std::vector<text::Batch> result;
  for (int64_t begin = 0; begin < config_.batch_size; begin += config_.micro_batch_size) {
    std::vector<std::vector<int64_t>> rows;
    for (int64_t i = 0; i < config_.micro_batch_size; ++i) rows.push_back(row(step * config_.batch_size + begin + i));
    result.push_back(make_batch(rows));
  }
  return result;
}

std::vector<int64_t> TrainingData::lines(int64_t step) const {
  std::vector<int64_t> result;
  for (int64_t i = 0; i < config_.batch_size; ++i) {
    for (const int64_t index : row(step * config_.batch_size + i))
      result.push_back(dataset().line(training_.pieces[index].record));
  }
  return result;
}

int64_t TrainingData::held_out_batches() const { return ceil_div(std::ssize(held_out_), config_.micro_batch_size); }

text::Batch TrainingData::held_out_batch(int64_t index) const {
  const int64_t begin = index * config_.micro_batch_size;
  const int64_t end = std::min<int64_t>(std::ssize(held_out_), begin + config_.micro_batch_size);
  std::vector<text::Example> examples;
  for (int64_t i = begin; i < end; ++i) examples.push_back(example_of(held_out_source(), held_out_[i]));
  return text::pad_batch(examples, 1);
}

text::Example TrainingData::first_example() const { return example_of(training_, used_.front()); }

double TrainingData::epochs(int64_t steps) const {
  const int64_t rows =
      config_.packing ? static_cast<int64_t>(epoch_rows(0).size()) : static_cast<int64_t>(used_.size());
  return static_cast<double>(steps * config_.batch_size) / static_cast<double>(rows);
}

nlohmann::json report_json(const DataReport& report) {
  return {{"records", report.records},
          {"bad_records", report.bad_records},
          {"examples", report.examples},
          {"held_out", report.held_out},
          {"cut", report.cut.examples},
          {"cut_tokens", report.cut.tokens},
          {"cut_by",
           {{"source_length", report.cut_source.examples},
            {"target_length", report.cut_target.examples},
            {"sequence_length", report.cut_sequence.examples}}},
          {"without_target", report.without_target},
          {"tokens", report.tokens},
          {"trained_tokens", report.trained_tokens},
          {"median_length", report.median_length},
          {"p95_length", report.p95_length},
          {"longest", report.longest},
          {"split_texts", report.split_texts},
          {"windows", report.windows}};
}

std::string cut_by(const DataReport& report, const TrainConfig& config) {
  std::vector<std::string> parts;
  const auto add = [&](const Cut& cut, const char* key, int64_t limit) {
    if (cut.examples > 0) parts.push_back(message(format_count(cut.examples), " by ", key, " ", limit));
  };
  add(report.cut_source, "source_length", config.source_length);
  add(report.cut_target, "target_length", config.target_length);
  add(report.cut_sequence, "sequence_length", config.sequence_length);
  return parts.empty() ? "" : message(" (", join(parts, ", "), ")");
}

}  // namespace qalora::train
