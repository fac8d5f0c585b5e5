// Weights in another dtype, block by block of rows, with what that lost.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <functional>
#include <span>

#include "qalora/export/report.h"

namespace qalora::exporting {

// Fills [end - begin, columns] f32 with rows [begin, end); called from several threads.
using RowSource = std::function<void(int64_t begin, int64_t end, float* rows)>;

struct RoundOptions {
  const float* scales =
      nullptr;  // [rows, groups]: steps of the grid in which the loss is counted; null: the largest |w|
  int64_t group_size = 0;
};

// -> [rows, columns] in `type`, by all threads; a block stays in the cache between its making and the comparison with
// what was rounded. What was lost goes into `report`.
at::Tensor round_rows(const RowSource& source, int64_t rows, int64_t columns, at::ScalarType type,
                      const RoundOptions& options, TensorReport& report);

// Of a float type; smaller ones have fewer digits.
float smallest_normal(at::ScalarType type);

// No inf and no NaN among stored F32, F16 or BF16 numbers, at any alignment; by all threads.
bool all_finite(std::span<const std::byte> values, at::ScalarType type);

// A stored tensor of any shape in `type`.
at::Tensor round_tensor(const at::Tensor& stored, at::ScalarType type, TensorReport& report);

}  // namespace qalora::exporting
