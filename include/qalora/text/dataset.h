// Instruction data of many formats, read one record at a time through an index of byte offsets: a file of any size
// costs sixteen bytes a record in memory.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "qalora/core/file.h"

namespace qalora::text {

// What a record looks like, by its keys (a CSV file has them in its first row):
//   alpaca         instruction, output, perhaps input (or prompt and completion)
//   flan           inputs, targets
//   self-instruct  instruction, instances [{input, output}]: each instance is a record; or prompt and completion, where
//                  an "<|endoftext|>" at the end is dropped
//   longform       input, output
//   chip2          text "<human>: ...\n<bot>: ...", one exchange or several
//   sharegpt       conversations [{from, value}]
//   messages       messages [{role, content}]
//   text           text, or the paragraphs of a .txt file
//   tokens         input_ids and labels (labels absent: every id is trained)
// Further keys are ignored, but for Record::task. A record whose answer is empty is a bad record, as is one over 64
// MiB.
enum class DataFormat { kAuto, kAlpaca, kFlan, kSelfInstruct, kLongForm, kChip2, kShareGpt, kMessages, kText, kTokens };
std::string data_format_name(DataFormat format);  // "alpaca", "flan", "self-instruct", "longform", "chip2", "sharegpt",
                                                  // "messages", "text", "tokens"
DataFormat parse_data_format(std::string_view name);  // UserError with the nearest name

struct Turn {
  std::string role;  // "system", "user", "assistant"
  std::string content;
};

// One record, whatever the file: a list of turns, or plain text, or ready-made ids.
struct Record {
  std::string instruction, input;          // Alpaca-like: one user turn in two fields (input may be empty)
  std::string output;                      // the answer
  std::vector<Turn> turns;                 // chats; empty for Alpaca-like records
  std::string text;                        // plain text: everything is trained on
  std::vector<int64_t> input_ids, labels;  // format "tokens": taken as they are, label -100 = not counted
  std::string
      task;  // what "task_name", "task", "subject" or "category" says (FLAN, MMLU, Dolly); "" where there is none
};

struct BadRecord {
  int64_t line = 0;  // line in the file, from 1
  std::string reason;
};

class Dataset {
 public:
  // JSON array, JSON Lines, CSV (with a header line), or text (one record a blank-line-separated block, .txt). The
  // container is told from the name and the first bytes, the format from the first record's keys unless forced (kText:
  // any text that is no JSON). Scans the whole file once: UserError when missing, DataError naming file and line for
  // the first bad record unless skip_bad_records, then bad() lists them. DataError for an empty file and for one where
  // nothing is left.
  Dataset(const fs::path& path, DataFormat format, bool skip_bad_records);
  ~Dataset();
  Dataset(Dataset&&) noexcept;

  int64_t size() const;
  // DataError with file and line when the file changed meanwhile; merely touched it is taken, once fingerprint() was
  // asked for.
  Record record(int64_t index) const;
  int64_t line(int64_t index) const;  // from 1
  const fs::path& path() const;
  DataFormat format() const;  // never kAuto
  bool detected() const;      // format was told from the records
  const std::vector<BadRecord>& bad() const;
  bool ends_early() const;          // in the middle of a record or an array: it is probably a part of a file
  std::string fingerprint() const;  // SHA-256 over the file's bytes

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// What whoever leaves bad records out warns of: how many there are, the first one, and that the file ends too early.
// bad: the data set's own and what the caller found.
void warn_of_bad(const Dataset& dataset, const std::vector<BadRecord>& bad);

// A CSV reader after RFC 4180: quotes, embedded commas and line breaks; every cell is text ("None" stays "None").
// Calls row(cells, line of its first byte) for each row. DataError names file and line for an unterminated quote.
void read_csv(const fs::path& path, const std::function<void(std::vector<std::string>& cells, int64_t line)>& row);

}  // namespace qalora::text
