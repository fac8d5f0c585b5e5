#include "qalora/text/calibration.h"

#include <algorithm>
#include <map>
#include <set>

#include "qalora/core/checked.h"
#include "qalora/core/error.h"
#include "qalora/core/progress.h"
#include "qalora/core/signals.h"
#include "qalora/tensor/random.h"

namespace qalora::text {
namespace {

// Ids of long texts kept from one round to the next: 64 MB.
constexpr int64_t kCachedIds = int64_t{8} << 20;

// The records in the order in which they are drawn.
std::vector<int64_t> drawing_order(const Dataset& dataset, uint64_t seed) {
  const std::vector<int64_t> shuffled = tensor::RandomStream(seed, "calibration").permutation(dataset.size());
  std::map<std::string, size_t> number_of;
  std::vector<std::vector<int64_t>> tasks;  // in the order of their first record
  for (const int64_t index : shuffled) {
    const auto [task, fresh] = number_of.try_emplace(dataset.record(index).task, tasks.size());
    if (fresh) tasks.emplace_back();
    tasks[task->second].push_back(index);
  }
  if (tasks.size() == 1) return shuffled;
  std::vector<int64_t> order;
  for (size_t turn = 0; std::ssize(order) < dataset.size(); ++turn) {
    for (const auto& records : tasks) {
      if (turn < records.size()) order.push_back(records[turn]);
    }
  }
  return order;
}

class Filler {
 public:
  Filler(const Dataset& dataset, const Tokenizer* tokenizer, int64_t vocab_size, const CalibrationOptions& options)
      : dataset_(dataset),
        tokenizer_(tokenizer),
        vocab_size_(vocab_size),
        options_(options) {}

  Calibration run() {
    const std::vector<int64_t> order = drawing_order(dataset_, options_.seed);
    Progress progress("tokenising", options_.samples, "rows");
    bool more = true;
    for (int64_t round = 0; more && !full(); ++round) {
      more = false;
      for (const int64_t index : order) {
        throw_if_stopped();
        more |= take(index, round);
        progress.update(std::ssize(result_.rows));
        if (full()) break;
      }
    }
    finish();
    return std::move(result_);
  }

 private:
  bool full() const { return std::ssize(result_.rows) == options_.samples && room() == 0; }
  int64_t room() const {
    return result_.rows.empty() ? 0 : options_.sequence_length - std::ssize(result_.rows.back().ids);
  }

  // Adds what the record gives in this round -> has it more for another?
  bool take(int64_t index, int64_t round) {
    if (round > 0 && !windows_.contains(index)) return false;
    int64_t windows = 1;
    const std::vector<int64_t> ids = piece(index, round, windows);
    if (windows > 1) windows_[index] = windows;
    if (round >= windows) return false;
    require_known(index, ids);
    if (round == 0) used_.insert(index);
    append(ids);
    return round + 1 < windows;
  }

  std::vector<int64_t> piece(int64_t index, int64_t round, int64_t& windows) {
    const int64_t length = options_.sequence_length;
    if (dataset_.format() == DataFormat::kText) {
      const std::vector<int64_t>& ids = text(index);
      windows = ceil_div(std::ssize(ids), length);
      if (windows == 1) return ids;
      // The first window lies anywhere; the others follow it, around the end.
      const auto first =
          static_cast<int64_t>(tensor::RandomStream(options_.seed, "calibration window", static_cast<uint64_t>(index))
                                   .below(static_cast<uint64_t>(windows)));
      const int64_t begin = (first + round) % windows * length, end = std::min(begin + length, std::ssize(ids));
      return {ids.begin() + begin, ids.begin() + end};
    }
    ExampleOptions example;
    example.kind = options_.kind;
    example.sequence_length = length;
    const Record record = dataset_.record(index);
    return dataset_.format() == DataFormat::kTokens ? make_token_example(record, example).input_ids
                                                    : make_example(*tokenizer_, record, example).input_ids;
  }

  const std::vector<int64_t>& text(int64_t index) {
    if (const auto known = texts_.find(index); known != texts_.end()) return known->second;
    if (cached_ids_ > kCachedIds) {
      texts_.clear();
      cached_ids_ = 0;
    }
    std::vector<int64_t> ids = text_ids(*tokenizer_, dataset_.record(index).text);
    cached_ids_ += std::ssize(ids);
    return texts_[index] = std::move(ids);
  }

  void require_known(int64_t index, const std::vector<int64_t>& ids) const {
    for (const int64_t id : ids) {
      QALORA_REQUIRE(id >= 0 && id < vocab_size_, DataError, dataset_.path().string(), ":", dataset_.line(index),
                     ": token id ", id, " is outside the model's vocabulary of ", vocab_size_,
                     "; is it of another model?");
    }
  }

  // What does not fit into the row is dropped.
  void append(const std::vector<int64_t>& ids) {
    if (room() == 0) result_.rows.emplace_back();
    CalibrationRow& row = result_.rows.back();
    row.starts.push_back(std::ssize(row.ids));
    const int64_t count = std::min<int64_t>(room(), std::ssize(ids));
    row.ids.insert(row.ids.end(), ids.begin(), ids.begin() + count);
    result_.tokens += count;
  }

  void finish() {
    std::set<std::string> tasks;
    for (const int64_t index : used_) tasks.insert(dataset_.record(index).task);
    tasks.erase("");
    result_.tasks = std::ssize(tasks);
    result_.records = std::ssize(used_);
    result_.all_records = dataset_.size();
    result_.bad_records = std::ssize(dataset_.bad());
    result_.format = dataset_.format();
  }

  const Dataset& dataset_;
  const Tokenizer* tokenizer_;
  int64_t vocab_size_;
  CalibrationOptions options_;
  Calibration result_;
  std::set<int64_t> used_;
  std::map<int64_t, int64_t> windows_;  // of the records that have several
  std::map<int64_t, std::vector<int64_t>> texts_;
  int64_t cached_ids_ = 0;
};

}  // namespace

std::string Calibration::digest() const {
  Sha256 hash;
  for (const CalibrationRow& row : rows) {
    hash.update(message(row.ids.size(), " ", row.starts.size(), " "));
    hash.update(std::as_bytes(std::span(row.ids)));
    hash.update(std::as_bytes(std::span(row.starts)));
  }
  return hash.hex();
}

Calibration read_calibration(const fs::path& path, const Tokenizer* tokenizer, int64_t vocab_size,
                             const CalibrationOptions& options) {
  QALORA_REQUIRE(options.samples > 0 && options.sequence_length > 0, UserError, "calibration takes ", options.samples,
                 " rows of ", options.sequence_length, " tokens; expected at least one of one");
  const Dataset dataset(path, options.format, options.skip_bad_records);
  QALORA_REQUIRE(tokenizer != nullptr || dataset.format() == DataFormat::kTokens, UserError, path.string(),
                 ": is of format '", data_format_name(dataset.format()),
                 "', which needs a tokenizer, and the model has none; only format 'tokens' goes without");
  warn_of_bad(dataset, dataset.bad());
  return Filler(dataset, tokenizer, vocab_size, options).run();
}

}  // namespace qalora::text
