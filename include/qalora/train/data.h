// The training file as optimizer steps: which examples form which step is a function of (file, configuration, step), so
// a resumed run sees what an uninterrupted one would have seen.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "qalora/text/batch.h"
#include "qalora/text/dataset.h"
#include "qalora/text/template.h"
#include "qalora/text/tokenizer.h"
#include "qalora/train/config.h"

namespace qalora::train {

// What a limit of length took from the examples.
struct Cut {
  int64_t examples = 0, tokens = 0;
  void add(int64_t tokens_of_one) {
    examples += tokens_of_one > 0 ? 1 : 0;
    tokens += tokens_of_one;
  }
};

// What the whole file looks like after tokenising, before any step.
struct DataReport {
  int64_t records = 0;      // good ones in the file
  int64_t bad_records = 0;  // skipped because skip_bad_records is set
  int64_t split_texts = 0;  // plain texts longer than sequence_length, which are trained in windows,
  int64_t windows = 0;      // and the windows, each an example
  int64_t examples = 0;     // used for training
  int64_t held_out = 0;     // kept out of it for evaluation
  Cut cut;                  // by any limit; an example may be counted by several of the next three
  Cut cut_source, cut_target, cut_sequence;
  int64_t without_target = 0;  // nothing left to learn after cutting: dropped
  int64_t tokens = 0;          // of the used examples, one epoch
  int64_t trained_tokens = 0;
  int64_t median_length = 0, p95_length = 0, longest = 0;
};

class TrainingData {
 public:
  // tokenizer may be null only for data_format "tokens". Tokenises everything once (with progress) for lengths and the
  // report. vocab_size bounds every id, held-out ones included. DataError when nothing can be trained or scored on.
  TrainingData(const TrainConfig& config, const text::Tokenizer* tokenizer, int64_t vocab_size);

  // The micro-batches of optimizer step `step` (0 first), micro_batch_size rows each.
  std::vector<text::Batch> step(int64_t step) const;
  // Lines of the training file that step `step` is made of, for naming a bad one.
  std::vector<int64_t> lines(int64_t step) const;
  // The held-out examples in batches of micro_batch_size rows, made one at a time: a held-out file may be of any size.
  int64_t held_out_batches() const;
  text::Batch held_out_batch(int64_t index) const;

  void set_micro_batch_size(int64_t rows) { config_.micro_batch_size = rows; }
  const DataReport& report() const { return report_; }
  const text::Dataset& dataset() const { return *training_.dataset; }
  const std::vector<text::BadRecord>& bad() const { return bad_; }  // of the training file
  text::Example first_example() const;                              // the first one trained on without shuffling
  double epochs(int64_t steps) const;                               // how often `steps` steps see each example
  std::string fingerprint() const { return training_.dataset->fingerprint(); }

 private:
  // What one row can be made of: a record, or a window of a long text.
  struct Piece {
    int64_t record = 0;
    int32_t window = 0;
    int32_t length = 0;  // tokens
  };
  struct Source {
    std::unique_ptr<text::Dataset> dataset;
    std::vector<Piece> pieces;  // those with something to train on, in file order
    // Ids of long texts, whose windows would else have all of the text encoded for each of them.
    mutable std::map<int64_t, std::vector<int64_t>> texts;
    mutable int64_t cached_ids = 0;
  };
  using OnExample = std::function<void(const text::Example& example)>;

  // One epoch's rows: each the pieces that share it.
  using Rows = std::vector<std::vector<int64_t>>;
  const Rows& epoch_rows(int64_t epoch) const;
  // Examples of global row `row`, counted through all epochs.
  const std::vector<int64_t>& row(int64_t row) const;
  void say_chat_style() const;
  text::Example window_of(const Source& source, const Piece& piece) const;
  text::Example example_of(const Source& source, const Piece& piece) const;
  text::Example example_of(const Source& source, int64_t piece) const {
    return example_of(source, source.pieces[piece]);
  }
  Source open(const std::string& path) const;
  void read_all(Source& source, const char* what, int64_t vocab_size, std::vector<text::BadRecord>& bad,
                const OnExample& on_example);
  void measure(int64_t vocab_size);
  void hold_out();
  void measure_held_out(int64_t vocab_size);
  const Source& held_out_source() const { return separate_.dataset ? separate_ : training_; }
  text::Batch make_batch(const std::vector<std::vector<int64_t>>& rows) const;

  TrainConfig config_;
  const text::Tokenizer* tokenizer_;
  text::ExampleOptions options_;
  Source training_, separate_;     // separate_: eval_data, where given
  std::vector<int64_t> used_;      // pieces trained on, in file order
  std::vector<int64_t> held_out_;  // pieces kept out, of separate_ where there is one
  std::vector<text::BadRecord> bad_;
  DataReport report_;
  mutable std::map<int64_t, Rows> epochs_;    // cache of the last two
  mutable std::vector<int64_t> epoch_begin_;  // first global row of each epoch known so far
};

// " (530 by target_length 100, 9 by sequence_length 256)", or "" where nothing was cut.
std::string cut_by(const DataReport& report, const TrainConfig& config);
// Every count, under the names that the dry run and the start of a run print.
nlohmann::json report_json(const DataReport& report);

}  // namespace qalora::train
