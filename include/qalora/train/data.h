// The training file as optimizer steps: which examples form which step is a function of (file, configuration, step), so a
// resumed run sees what an uninterrupted one would have seen.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "qalora/text/batch.h"
#include "qalora/text/dataset.h"
#include "qalora/text/template.h"
#include "qalora/text/tokenizer.h"
#include "qalora/train/config.h"

namespace qalora::train {

// What the whole file looks like after tokenising, before any step.
struct DataReport {
  int64_t records = 0;         // good ones in the file
  int64_t bad_records = 0;     // skipped because skip_bad_records is set
  int64_t examples = 0;        // used for training
  int64_t held_out = 0;        // kept out of it for evaluation
  int64_t cut = 0;             // longer than sequence_length
  int64_t cut_tokens = 0;
  int64_t without_target = 0;  // nothing left to learn after cutting: dropped
  int64_t tokens = 0;          // of the used examples, one epoch
  int64_t trained_tokens = 0;
  int64_t median_length = 0, p95_length = 0, longest = 0;
};

class TrainingData {
 public:
  // tokenizer may be null only for data_format "tokens". Tokenises everything once (with progress) for lengths and the report.
  // vocab_size bounds every id, held-out ones included. DataError when nothing can be trained or scored on.
  TrainingData(const TrainConfig& config, const text::Tokenizer* tokenizer, int64_t vocab_size);

  // The micro-batches of optimizer step `step` (0 first), micro_batch_size rows each.
  std::vector<text::Batch> step(int64_t step) const;
  // Lines of the training file that step `step` is made of, for naming a bad one.
  std::vector<int64_t> lines(int64_t step) const;
  // The held-out examples in batches of micro_batch_size rows, made one at a time: a held-out file may be of any size.
  int64_t held_out_batches() const;
  text::Batch held_out_batch(int64_t index) const;

  const DataReport& report() const { return report_; }
  const text::Dataset& dataset() const { return *dataset_; }
  text::Example example(int64_t index) const { return example_of(*dataset_, index); }
  int64_t first_example() const;  // index of the first one trained on without shuffling
  double epochs(int64_t steps) const;  // how often `steps` steps see each example
  std::string fingerprint() const { return dataset_->fingerprint(); }

 private:
  // One epoch's rows: each the examples (dataset indices) that share it.
  using Rows = std::vector<std::vector<int64_t>>;
  const Rows& epoch_rows(int64_t epoch) const;
  // Examples of global row `row`, counted through all epochs.
  const std::vector<int64_t>& row(int64_t row) const;
  text::Example example_of(const text::Dataset& dataset, int64_t index) const;
  void measure(int64_t vocab_size);
  void hold_out();
  void measure_held_out(int64_t vocab_size);
  const text::Dataset& held_out_dataset() const { return eval_dataset_ ? *eval_dataset_ : *dataset_; }
  text::Batch make_batch(const std::vector<std::vector<int64_t>>& rows, const text::Dataset& dataset) const;

  TrainConfig config_;
  const text::Tokenizer* tokenizer_;
  text::ExampleOptions options_;
  std::unique_ptr<text::Dataset> dataset_, eval_dataset_;
  std::vector<int64_t> used_;      // dataset indices trained on, in file order
  std::vector<int64_t> held_out_;  // indices kept out, into eval_dataset_ where there is one
  std::vector<int32_t> lengths_;   // tokens of each example of the dataset, 0 for a dropped one
  DataReport report_;
  mutable std::map<int64_t, Rows> epochs_;      // cache of the last two
  mutable std::vector<int64_t> epoch_begin_;    // first global row of each epoch known so far
};

}  // namespace qalora::train
