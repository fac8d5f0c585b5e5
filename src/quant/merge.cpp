#include "qalora/quant/merge.h"

#include <ATen/ATen.h>

#include "qalora/core/checked.h"
#include "qalora/core/error.h"

namespace qalora::quant {
namespace {

// k * (B A) in f64 [out_features, groups]
at::Tensor change_in_double(const std::string& name, const io::AdapterConfig& config, const io::AdapterWeights& adapter,
                            int64_t in_features, int64_t group_size) {
  QALORA_REQUIRE(
      config.pooling != io::Pooling::kNone, DataError, name,
      ": the adapter is an ordinary LoRA (no pooling), whose change is not constant inside a group; only a QA-LoRA adapter "
      "(pooling sum or mean) merges into offsets");
  const bool same_groups =
      config.group_size == group_size || (config.group_size == kWholeRow && group_size == in_features);
  QALORA_REQUIRE(same_groups, DataError, name, ": the adapter pools groups of ", config.group_size,
                 " inputs, the base is quantised in groups of ", group_size, "; merge into the base it was trained on");
  const int64_t groups = ceil_div(in_features, group_size);
  QALORA_REQUIRE(adapter.a.dim() == 2 && adapter.a.size(1) == groups, DataError, name, ": lora_A has shape ",
                 adapter.a.sizes(), ", expected ", groups, " columns, one for each group of inputs");
  QALORA_REQUIRE(adapter.b.dim() == 2 && adapter.b.size(1) == adapter.a.size(0), DataError, name, ": lora_B has shape ",
                 adapter.b.sizes(), " and lora_A ", adapter.a.sizes(), "; the ranks differ");
  at::Tensor change = at::mm(adapter.b.to(at::kDouble), adapter.a.to(at::kDouble))
                          .mul_(adapter.scaling(config));  // [out_features, groups]
  if (config.pooling == io::Pooling::kMean) {
    at::Tensor lengths = at::full({groups}, static_cast<double>(group_size), at::kDouble);
    lengths[groups - 1] = static_cast<double>(in_features - (groups - 1) * group_size);
    change.div_(lengths);
  }
  return change;
}

}  // namespace

at::Tensor offset_change(const std::string& name, const io::AdapterConfig& config, const io::AdapterWeights& adapter,
                         int64_t in_features, int64_t group_size) {
  return change_in_double(name, config, adapter, in_features, group_size).to(at::kFloat);
}

PackedWeight merge(const std::string& name, const PackedWeight& base, const io::AdapterConfig& config,
                   const io::AdapterWeights& adapter) {
  const at::Tensor change = change_in_double(name, config, adapter, base.in_features, base.group_size);
  QALORA_REQUIRE(change.size(0) == base.out_features(), DataError, name, ": lora_B has ", change.size(0),
                 " rows, the base ", base.out_features());
  PackedWeight merged = base;
  merged.offsets = base.offsets.to(at::kDouble).add_(change).to(at::kFloat);
  QALORA_REQUIRE(at::isfinite(merged.offsets).all().item<bool>(), DataError, name,
                 ": merged offsets are not finite; the adapter is damaged");
  return merged;
}

}  // namespace qalora::quant
