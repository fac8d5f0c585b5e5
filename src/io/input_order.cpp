#include "qalora/io/input_order.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <vector>

#include "qalora/core/checked.h"
#include "qalora/core/error.h"

namespace qalora::io {

at::Tensor input_order(const std::string& name, const at::Tensor& groups_of, int64_t group_size) {
  QALORA_REQUIRE(groups_of.dim() == 1 && (groups_of.scalar_type() == at::kInt || groups_of.scalar_type() == at::kLong),
                 DataError, name, ": is ", c10::toString(groups_of.scalar_type()), " ", groups_of.sizes(),
                 ", expected I32 [in_features]");
  const at::Tensor wide = groups_of.to(at::kLong).contiguous();
  const int64_t in_features = wide.size(0), groups = ceil_div(in_features, group_size);
  const int64_t* group_of = wide.const_data_ptr<int64_t>();
  std::vector<int64_t> next(static_cast<size_t>(groups));  // where the next input of each group goes
  for (int64_t g = 0; g < groups; ++g) next[static_cast<size_t>(g)] = g * group_size;
  at::Tensor order = at::empty({in_features}, at::kLong);
  bool sorted = true;
  for (int64_t i = 0; i < in_features; ++i) {
    const int64_t group = group_of[i];
    QALORA_REQUIRE(group >= 0 && group < groups, DataError, name, ": input ", i, " is said to be of group ", group,
                   ", there are ", groups, " groups of ", group_size, " inputs");
    int64_t& place = next[static_cast<size_t>(group)];
    // Every place is taken once: where one group has too many inputs, another has too few.
    QALORA_REQUIRE(
        place < std::min((group + 1) * group_size, in_features), DataError, name, ": group ", group, " has more than ",
        std::min(group_size, in_features - group * group_size),
        " inputs; groups of unequal size cannot be brought into contiguous groups. Start from the dense checkpoint ('qalora "
        "quantize'), or from one that was quantised without act-order (desc_act)");
    sorted = sorted && place == i;
    order.data_ptr<int64_t>()[place++] = i;
  }
  return sorted ? at::Tensor() : order;
}

at::Tensor in_input_order(const at::Tensor& columns, const at::Tensor& order) {
  return columns.index_select(1, order.argsort());
}

}  // namespace qalora::io
