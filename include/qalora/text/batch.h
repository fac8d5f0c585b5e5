// Examples put together for one forward pass.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>
#include <vector>

#include "qalora/text/template.h"

namespace qalora::text {

inline constexpr int64_t kIgnore = -100;  // label of a position that is not counted

// Rows of one length. A row holds one segment (padded on the right) or several, packed one behind the other; attention
// never crosses a segment's border and positions start again at 0 in each.
struct Batch {
  at::Tensor input_ids;  // [rows, length] i64; padding is id 0 and never looked at
  at::Tensor targets;    // [rows, length] i64: the id that position t must predict (already shifted), kIgnore elsewhere
  at::Tensor positions;  // [rows, length] i64
  // Segments as [begin, end) in the flattened [rows * length] tokens, in order; the padding at a row's end belongs to
  // its last segment (causal attention keeps it from being seen).
  std::vector<std::pair<int64_t, int64_t>> segments;
  int64_t trained_tokens = 0;
  int64_t real_tokens = 0;  // without padding

  int64_t rows() const { return input_ids.size(0); }
  int64_t length() const { return input_ids.size(1); }
};

// One example a row, padded to the longest (up to a multiple of `multiple`).
Batch pad_batch(std::span<const Example> examples, int64_t multiple = 1);
// Each inner list becomes one row of exactly `length` tokens.
Batch pack_batch(const std::vector<std::vector<Example>>& rows, int64_t length);

// Puts examples into rows of `length`: in the given order, each into the first of the last 64 rows that has room.
// Indices of examples per row; lengths[i] <= length. The same lengths always give the same rows.
std::vector<std::vector<int64_t>> plan_packing(std::span<const int64_t> lengths, int64_t length);

}  // namespace qalora::text
