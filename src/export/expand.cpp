#include "expand.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "folder.h"
#include "qalora/core/error.h"
#include "qalora/io/input_order.h"
#include "qalora/model/adapter_base.h"
#include "qalora/model/merge_checkpoint.h"

namespace qalora::exporting {
namespace {

// Inputs that share a column of A.
int64_t pool_length(const Source& source, const std::string& module, int64_t in_features) {
  const io::AdapterConfig& config = source.adapter->config;
  if (config.pooling == io::Pooling::kNone) return 1;
  if (config.group_size == source.config.quantization->group_size)
    return source.config.quantization->group_size_of(module, in_features);
  return config.group_size == quant::kWholeRow ? in_features : config.group_size;
}

// The column of A for each input: [in_features] i64.
at::Tensor columns_of(const Source& source, const std::string& module, int64_t in_features) {
  const std::string sorted = module + ".g_idx";  // groups of inputs that do not lie side by side
  if (source.adapter->config.pooling != io::Pooling::kNone && source.checkpoint.contains(sorted)) {
    const at::Tensor groups = source.checkpoint.read(sorted, {in_features});
    // Refuses numbers that are no group; the order itself is not needed.
    const std::string where = message(source.checkpoint.file_of(sorted).string(), ": tensor '", sorted, "'");
    io::input_order(where, groups, pool_length(source, module, in_features));
    return groups.to(at::kLong);
  }
  return at::arange(in_features, at::kLong).floor_divide_(pool_length(source, module, in_features));
}

void check_shapes(const Source& source, const std::string& where) {
  const auto shapes = model::linear_shapes(source.config);
  for (const auto& [module, weights] : source.adapter->modules) {
    const auto shape = shapes.find(module);
    QALORA_REQUIRE(shape != shapes.end(), DataError, where, ": module '", module, "' is not a linear layer of ",
                   source.checkpoint.folder().string());
    model::require_known_order(source.adapter->config, module, source.checkpoint.contains(module + ".g_idx"));
    const int64_t out_features = shape->second[0], in_features = shape->second[1];
    const int64_t columns = kernels::groups_per_row(in_features, pool_length(source, module, in_features));
    QALORA_REQUIRE(weights.a.size(1) == columns && weights.b.size(0) == out_features, DataError, where, ": module '",
                   module, "' has A ", weights.a.sizes(), " and B ", weights.b.sizes(), ", the model needs A [",
                   weights.a.size(0), ", ", columns, "] and B [", out_features, ", ", weights.a.size(0), "]");
  }
}

}  // namespace

void check_adapter(const Source& source) {
  const std::string where = source.adapter_folder.string();
  QALORA_REQUIRE(source.quantised() || source.adapter->config.pooling == io::Pooling::kNone, DataError, where,
                 ": pools its inputs for a quantised base, but ", source.checkpoint.folder().string(),
                 " is dense; give the quantised checkpoint that "
                 "it was trained on");
  model::warn_of_unknown_base(source.adapter->config, source.adapter_folder, source.checkpoint.folder());
  model::require_not_merged(source.checkpoint.folder(), source.adapter_folder);
  check_shapes(source, where);
  try {
    model::require_base(source.adapter->config,
                        source.quantised() ? model::base_identity(source.checkpoint) : model::BaseIdentity{});
  } catch (const DataError& error) {
    throw DataError(where + ": " + error.what());
  }
}

int64_t largest_rank(const io::AdapterFile& adapter) {
  int64_t rank = 0;
  for (const auto& [module, weights] : adapter.modules) rank = std::max(rank, weights.a.size(0));
  return rank;
}

at::Tensor expanded_a(const Source& source, const std::string& module, int64_t in_features) {
  const io::AdapterConfig& config = source.adapter->config;
  const io::AdapterWeights& weights = source.adapter->modules.at(module);
  const at::Tensor groups = columns_of(source, module, in_features);
  at::Tensor a = weights.a.to(at::kDouble).index_select(1, groups).mul_(weights.scaling(config));
  if (config.pooling == io::Pooling::kMean) {
    // The last group may be shorter than the others.
    const at::Tensor counts = at::bincount(groups).to(at::kDouble);
    a.div_(counts.index_select(0, groups));
  }
  return a;
}

}  // namespace qalora::exporting
