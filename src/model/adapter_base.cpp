#include "qalora/model/adapter_base.h"

#include <ATen/ATen.h>

#include "qalora/core/error.h"
#include "qalora/core/format.h"
#include "qalora/core/log.h"
#include "qalora/io/checkpoint.h"
#include "qalora/model/load.h"
#include "qalora/quant/packed_weight.h"

namespace qalora::model {
namespace {

// The L of A's [rank, in_features / L] where all modules have the same one that is larger than 1; else 0.
int64_t common_group(const io::AdapterFile& adapter, const LlamaConfig& base) {
  const auto shapes = linear_shapes(base);
  int64_t common = 0;
  for (const auto& [module, weights] : adapter.modules) {
    const auto shape = shapes.find(module);
    if (shape == shapes.end()) return 0;
    const int64_t in_features = shape->second[1], columns = weights.a.size(1);
    if (in_features % columns != 0) return 0;
    const int64_t group = in_features / columns;
    if (group == 1 || (common != 0 && group != common)) return 0;
    common = group;
  }
  return common;
}

// Nothing in the official code's files says that they are its own; only the shape of A does.
void recognise_official(io::AdapterFile& adapter, const LlamaConfig& base, const std::string& where) {
  if (adapter.config.origin != io::AdapterOrigin::kLora) return;
  const int64_t group_size = common_group(adapter, base);
  if (group_size == 0) return;
  adapter.config.origin = io::AdapterOrigin::kOfficial;
  adapter.config.pooling = io::Pooling::kMean;
  adapter.config.group_size = group_size;
  log::info(message(where, ": A has in_features / ", group_size,
                    " columns and the configuration has no 'use_qalora': read as an adapter of "
                    "the official QA-LoRA code, which averages over ",
                    group_size, " inputs and scales by ", format_number(adapter.config.scaling)));
}

int64_t whole_group(int64_t group_size, int64_t in_features) {
  return group_size == quant::kWholeRow ? in_features : group_size;
}

// One A over groups of `fine` inputs instead of `coarse`. Each of the coarse group's columns is repeated; a mean over
// the coarse group is fine / coarse times the sum of the means over the fine ones.
void spread_module(io::AdapterWeights& weights, const io::AdapterConfig& config, int64_t in_features, int64_t coarse,
                   int64_t fine) {
  const int64_t groups = kernels::groups_per_row(in_features, fine);
  const at::Tensor columns = at::arange(groups, at::kLong).mul_(fine).floor_divide_(coarse);
  const double scaling = weights.scaling(config);
  weights.a = weights.a.index_select(1, columns).contiguous();
  if (config.pooling == io::Pooling::kMean)
    weights.own_scaling = scaling * static_cast<double>(fine) / static_cast<double>(coarse);
}

// May this adapter be spread over the base's groups? Where A does not have the columns that its own group size says,
// the module's shape is wrong, which attaching and merging say better.
bool can_spread(const io::AdapterFile& adapter, const LlamaConfig& base) {
  const auto shapes = linear_shapes(base);
  for (const auto& [module, weights] : adapter.modules) {
    const auto shape = shapes.find(module);
    if (shape == shapes.end()) return false;
    const int64_t in_features = shape->second[1];
    const int64_t coarse = whole_group(adapter.config.group_size, in_features),
                  fine = base.quantization->group_size_of(module, in_features);
    if (coarse % fine != 0 || weights.a.size(1) != kernels::groups_per_row(in_features, coarse)) return false;
    // The mean over a shorter last group has a divisor of its own.
    if (adapter.config.pooling == io::Pooling::kMean && in_features % coarse != 0) return false;
  }
  return true;
}

void spread_over_groups(io::AdapterFile& adapter, const LlamaConfig& base, const std::string& where) {
  io::AdapterConfig& config = adapter.config;
  const bool own = config.origin == io::AdapterOrigin::kOwn;  // made for one group size; another one is another base
  if (own || config.pooling == io::Pooling::kNone || !base.quantization || !can_spread(adapter, base)) return;
  const auto shapes = linear_shapes(base);
  bool spread = false;
  for (auto& [module, weights] : adapter.modules) {
    const int64_t in_features = shapes.at(module)[1], coarse = whole_group(config.group_size, in_features);
    const int64_t fine = base.quantization->group_size_of(module, in_features);
    if (coarse == fine) continue;
    spread_module(weights, config, in_features, coarse, fine);
    spread = true;
  }
  if (!spread) return;
  log::info(message(where, ": pools groups of ", config.group_size, " inputs, several of the base's groups of ",
                    base.quantization->group_size, ": its columns are repeated, which is the same function"));
  config.group_size = base.quantization->group_size;
}

}  // namespace

std::map<std::string, std::vector<int64_t>> linear_shapes(const LlamaConfig& config) {
  std::map<std::string, std::vector<int64_t>> shapes;
  for (const auto& tensor : expected_tensors(config)) {
    if (tensor.linear) shapes[io::module_of(tensor.name)] = tensor.shape;
  }
  return shapes;
}

void fit_to_base(io::AdapterFile& adapter, const LlamaConfig& base, const std::string& where) {
  recognise_official(adapter, base, where);
  spread_over_groups(adapter, base, where);
}

io::AdapterFile read_adapter_for(const fs::path& folder, const LlamaConfig& base) {
  const fs::path found = io::find_adapter(folder);
  io::AdapterFile adapter = io::read_adapter(found);
  fit_to_base(adapter, base, found.string());
  return adapter;
}

}  // namespace qalora::model
