#include "qalora/quant/adapter.h"

#include <ATen/ATen.h>

#include <cmath>

#include "qalora/core/error.h"
#include "qalora/tensor/random.h"

namespace qalora::quant {

io::AdapterFile new_adapter(const io::AdapterConfig& config, const std::vector<LinearShape>& shapes, uint64_t seed) {
  QALORA_CHECK(config.rank > 0, "rank ", config.rank);
  io::AdapterFile adapter;
  adapter.config = config;
  for (const auto& shape : shapes) {
    const double bound = std::sqrt(6.0 / static_cast<double>(shape.adapter_inputs + config.rank));
    tensor::RandomStream stream(seed, "adapter " + shape.module);
    io::AdapterWeights weights;
    weights.a = stream.uniform_tensor({config.rank, shape.adapter_inputs}, -bound, bound);
    weights.b = at::zeros({shape.out_features, config.rank}, at::kFloat);
    const bool fresh = adapter.modules.emplace(shape.module, std::move(weights)).second;
    QALORA_CHECK(fresh, "module '", shape.module, "' is listed twice");
  }
  return adapter;
}

}  // namespace qalora::quant
