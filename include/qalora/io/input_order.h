// Groups of inputs that do not lie side by side ("act-order": the columns of a layer were quantised by falling
// importance, and a group is the ones that were quantised together). Sorted by group they do: a canonical tensor
// "P.g_idx" I32 [in_features] beside P.weight says of which group each of the layer's inputs is, and column k of
// P.weight then belongs to input order[k].
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>

namespace qalora::io {

// groups_of: [in_features] i32 or i64, the group of each input -> order: [in_features] i64, the inputs sorted by group
// and otherwise as they come; undefined where the groups lie in order already. DataError (beginning with `name`) where
// a number is no group, and where a group has not group_size inputs (the last one: what is left), for then no order
// makes it a group of contiguous inputs.
at::Tensor input_order(const std::string& name, const at::Tensor& groups_of, int64_t group_size);

// The other way: column order[k] of the result is column k of `columns` [rows, in_features].
at::Tensor in_input_order(const at::Tensor& columns, const at::Tensor& order);

}  // namespace qalora::io
