// The tokens that a model is calibrated on: records of a data set as training would see them, in full rows.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "qalora/text/dataset.h"
#include "qalora/text/template.h"
#include "qalora/text/tokenizer.h"

namespace qalora::text {

struct CalibrationOptions {
  DataFormat format = DataFormat::kAuto;
  TemplateKind kind = TemplateKind::kAlpaca;
  int64_t samples = 128;           // rows
  int64_t sequence_length = 2048;  // tokens of a row
  uint64_t seed = 42;
  bool skip_bad_records = false;
};

// Records behind one another, each a segment of its own: attention stays within it and its positions start at 0, as in
// training.
struct CalibrationRow {
  std::vector<int64_t> ids;
  std::vector<int64_t> starts;  // of the segments in `ids`, the first is 0
};

struct Calibration {
  std::vector<CalibrationRow> rows;  // all of sequence_length tokens, but for a last one where the file has no more
  int64_t tokens = 0;
  int64_t records = 0;      // used, of
  int64_t all_records = 0;  // those in the file
  int64_t tasks = 0;        // different ones among the records used; 0 where the file names none
  int64_t bad_records = 0;
  DataFormat format = DataFormat::kAuto;

  std::string digest() const;  // SHA-256 of the rows
};

// Draws records without replacement, in an order that follows from the seed; where records name a task, one of each
// task in turn, so that a small task counts as much as a large one. Rows are filled to the last token: the record at a
// row's end is cut there, as sequence_length cuts one in training (a prefix of a record is seen as in training; padding
// would be work for nothing). A text longer than a row gives a window at a seeded place, and further ones only when
// every record has given its own. UserError where the file needs a tokenizer and there is none.
Calibration read_calibration(const fs::path& path, const Tokenizer* tokenizer, int64_t vocab_size,
                             const CalibrationOptions& options);

}  // namespace qalora::text
