#include "qalora/text/batch.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "qalora/core/checked.h"
#include "qalora/core/error.h"

namespace qalora::text {
namespace {

// Rows open for another segment: enough to fill gaps with instruction data, few enough to keep rows near the given
// order.
constexpr size_t kOpenRows = 64;

Batch empty_batch(int64_t rows, int64_t length) {
  Batch batch;
  batch.input_ids = at::zeros({rows, length}, at::kLong);
  batch.targets = at::full({rows, length}, kIgnore, at::kLong);
  batch.positions = at::zeros({rows, length}, at::kLong);
  return batch;
}

// Puts one example at flattened position `begin`; the segment reaches to `end` (padding included).
void put(Batch& batch, const Example& example, int64_t begin, int64_t end) {
  const int64_t count = std::ssize(example.input_ids);
  QALORA_CHECK(count > 0 && example.labels.size() == example.input_ids.size() && begin + count <= end, "an example of ",
               count, " ids and ", example.labels.size(), " labels for ", end - begin, " places");
  int64_t* ids = batch.input_ids.data_ptr<int64_t>() + begin;
  int64_t* targets = batch.targets.data_ptr<int64_t>() + begin;
  int64_t* positions = batch.positions.data_ptr<int64_t>() + begin;
  std::copy(example.input_ids.begin(), example.input_ids.end(), ids);
  std::copy(example.labels.begin() + 1, example.labels.end(), targets);  // the last position predicts nothing
  for (int64_t t = 0; t < end - begin; ++t) positions[t] = t;
  batch.segments.emplace_back(begin, end);
  batch.trained_tokens += example.trained_tokens();
  batch.real_tokens += count;
}

}  // namespace

Batch pad_batch(std::span<const Example> examples, int64_t multiple) {
  QALORA_CHECK(!examples.empty() && multiple > 0, examples.size(), " examples, multiple ", multiple);
  int64_t longest = 0;
  for (const Example& example : examples) longest = std::max(longest, std::ssize(example.input_ids));
  const int64_t length = ceil_div(longest, multiple) * multiple;
  Batch batch = empty_batch(std::ssize(examples), length);
  for (int64_t row = 0; row < std::ssize(examples); ++row) put(batch, examples[row], row * length, (row + 1) * length);
  return batch;
}

Batch pack_batch(const std::vector<std::vector<Example>>& rows, int64_t length) {
  QALORA_CHECK(!rows.empty() && length > 0, rows.size(), " rows of ", length, " tokens");
  Batch batch = empty_batch(std::ssize(rows), length);
  for (int64_t row = 0; row < std::ssize(rows); ++row) {
    QALORA_CHECK(!rows[row].empty(), "row ", row, " has no examples");
    int64_t begin = row * length;
    for (const Example& example : rows[row]) {
      const bool last = &example == &rows[row].back();
      const int64_t end = last ? (row + 1) * length : begin + std::ssize(example.input_ids);
      QALORA_CHECK(end <= (row + 1) * length, "row ", row, " holds more than ", length, " tokens");
      put(batch, example, begin, end);
      begin = end;
    }
  }
  return batch;
}

std::vector<std::vector<int64_t>> plan_packing(std::span<const int64_t> lengths, int64_t length) {
  std::vector<std::vector<int64_t>> rows;
  std::vector<int64_t> used;  // tokens in each row
  for (int64_t index = 0; index < std::ssize(lengths); ++index) {
    QALORA_CHECK(lengths[index] > 0 && lengths[index] <= length, "example ", index, " has ", lengths[index],
                 " tokens for rows of ", length);
    size_t row = rows.size() - std::min(rows.size(), kOpenRows);
    while (row < rows.size() && used[row] + lengths[index] > length) ++row;
    if (row == rows.size()) {
      rows.emplace_back();
      used.push_back(0);
    }
    rows[row].push_back(index);
    used[row] += lengths[index];
  }
  return rows;
}

}  // namespace qalora::text
