#include "qalora/generate/sampler.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "qalora/core/error.h"
#include "qalora/tensor/random.h"

namespace qalora::generate {

void check_sampler(const SamplerOptions& options) {
  QALORA_REQUIRE(options.temperature >= 0 && std::isfinite(options.temperature), UserError,
                 "--temperature: expected 0 or more, got ", options.temperature);
  QALORA_REQUIRE(options.top_p > 0 && options.top_p <= 1, UserError,
                 "--top-p: expected more than 0 and at most 1, got ", options.top_p);
  QALORA_REQUIRE(options.top_k >= 0, UserError, "--top-k: expected 0 (all) or more, got ", options.top_k);
}

int64_t sample(const at::Tensor& logits, const SamplerOptions& options, uint64_t step) {
  const at::Tensor row = logits.to(at::kCPU, at::kFloat).contiguous();
  const float* values = row.data_ptr<float>();
  const int64_t vocab = row.numel();
  for (int64_t i = 0; i < vocab; ++i) {
    QALORA_REQUIRE(!std::isnan(values[i]) && values[i] < std::numeric_limits<float>::infinity(), DataError,
                   "the model gives token ", i, " a logit of ", values[i],
                   ": its weights or activations are not finite; check the checkpoint, or use --dtype float32");
  }
  const int64_t best = std::max_element(values, values + vocab) - values;
  if (options.temperature == 0 || options.top_k == 1) return best;

  std::vector<int64_t> order(static_cast<size_t>(vocab));
  std::iota(order.begin(), order.end(), int64_t{0});
  if (options.top_k > 0 || options.top_p < 1) {
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return values[a] > values[b]; });
    if (options.top_k > 0) order.resize(std::min(order.size(), static_cast<size_t>(options.top_k)));
  }
  std::vector<double> weights;
  double total = 0;
  for (int64_t id : order) {
    weights.push_back(std::exp((static_cast<double>(values[id]) - values[best]) / options.temperature));
    total += weights.back();
  }
  if (options.top_p < 1) {
    size_t kept = 0;
    double reached = 0;
    while (kept < weights.size() && reached < options.top_p * total) reached += weights[kept++];
    order.resize(kept);
    total = reached;
  }
  double left = tensor::RandomStream(options.seed, "sample", step).uniform() * total;
  for (size_t i = 0; i < order.size(); ++i) {
    left -= weights[i];
    if (left < 0) return order[i];
  }
  // Only rounding leads here, past tokens whose weight vanished.
  return best;
}

}  // namespace qalora::generate
