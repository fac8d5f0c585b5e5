#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "qalora/core/error.h"
#include "qalora/core/signals.h"
#include "qalora/eval/merge_proof.h"
#include "qalora/model/config.h"
#include "qalora/model/load.h"

namespace qalora::eval {
namespace {

// Half a unit in the last place of the fp32 number nearest to `exact`.
double half_ulp(double exact) {
  constexpr int kLeast = -126;  // below it the numbers are as far apart as here
  const int exponent = exact == 0 ? kLeast : std::max(std::ilogb(exact), kLeast);
  return std::ldexp(1.0, exponent - 24);
}

// One module's offsets before and after, and what lies between.
struct Module {
  at::Tensor before, after;     // [out_features, groups] f32
  at::Tensor a, b;              // [rank, groups], [out_features, rank] f32
  std::vector<double> factors;  // k of each group

  // The largest error of a row in units of what one rounding to fp32 may do.
  double worst_of_row(int64_t row) const {
    const int64_t rank = a.size(0), groups = a.size(1);
    const float *first = a.const_data_ptr<float>(), *second = b.const_data_ptr<float>() + row * rank;
    std::vector<double> sums(static_cast<size_t>(groups)), sizes(static_cast<size_t>(groups));
    for (int64_t r = 0; r < rank; ++r) {
      for (int64_t g = 0; g < groups; ++g) {
        const double product = static_cast<double>(second[r]) * static_cast<double>(first[r * groups + g]);
        sums[static_cast<size_t>(g)] += product;
        sizes[static_cast<size_t>(g)] += std::abs(product);
      }
    }
    // Here and in the merge: a sum of `rank` exact products, k, and b, each rounded to 53 bits.
    const double doubles = 2 * static_cast<double>(rank + 3) * std::ldexp(1.0, -53);
    double worst = 0;
    for (int64_t g = 0; g < groups; ++g) {
      const double old = before.const_data_ptr<float>()[row * groups + g],
                   written = after.const_data_ptr<float>()[row * groups + g];
      const double k = factors[static_cast<size_t>(g)], exact = old + k * sums[static_cast<size_t>(g)];
      const double allowed = half_ulp(exact) + doubles * (std::abs(old) + std::abs(k) * sizes[static_cast<size_t>(g)]);
      const double error = std::abs(written - exact) / allowed;
      if (!(error <= worst)) worst = error;  // keeps NaN
      if (std::isnan(worst)) break;
    }
    return worst;
  }

  double worst() const {
    std::vector<double> rows(static_cast<size_t>(before.size(0)));
    at::parallel_for(0, before.size(0), 16, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) rows[static_cast<size_t>(row)] = worst_of_row(row);
    });
    double result = 0;
    for (double row : rows) {
      if (!(row <= result)) result = row;
      if (std::isnan(result)) break;
    }
    return result;
  }
};

at::Tensor as_float(const at::Tensor& tensor) { return tensor.to(at::kFloat).contiguous(); }

// k of each group: the scaling, for mean pooling by the number of inputs in the group, of which the last may have
// fewer.
std::vector<double> factors_of(const io::AdapterConfig& config, double scaling, int64_t in_features, int64_t group_size,
                               int64_t groups) {
  std::vector<double> result(static_cast<size_t>(groups), scaling);
  if (config.pooling != io::Pooling::kMean) return result;
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t length = std::min(group_size, in_features - g * group_size);
    result[static_cast<size_t>(g)] /= static_cast<double>(length);
  }
  return result;
}

double worst_of_module(const io::Checkpoint& base, const io::AdapterFile& adapter, const io::Checkpoint& merged,
                       const std::string& module, int64_t in_features, int64_t group_size) {
  const std::string name = module + ".biases";
  const auto& weights = adapter.modules.at(module);
  const io::TensorInfo &before = base.info(name), &after = merged.info(name);
  const bool fits = after.dtype == io::Dtype::kF32 && after.shape == before.shape && before.shape.size() == 2 &&
                    weights.a.size(1) == before.shape[1] && weights.b.size(0) == before.shape[0] &&
                    weights.b.size(1) == weights.a.size(0);
  if (!fits) return std::numeric_limits<double>::infinity();
  const Module parts{
      as_float(base.read(name)), merged.read(name), as_float(weights.a), as_float(weights.b),
      factors_of(adapter.config, weights.scaling(adapter.config), in_features, group_size, before.shape[1])};
  return parts.worst();
}

}  // namespace

OffsetCheck check_offsets(const io::Checkpoint& base, const io::AdapterFile& adapter, const io::Checkpoint& merged) {
  OffsetCheck check;
  std::map<std::string, int64_t> widths;  // inputs of each linear layer
  const model::LlamaConfig config = model::read_config(base);
  QALORA_REQUIRE(config.quantization.has_value(), DataError, base.folder().string(),
                 ": is dense, it has no offsets to merge into");
  for (const auto& tensor : model::expected_tensors(config)) {
    if (tensor.linear) widths[io::module_of(tensor.name)] = tensor.shape[1];
  }
  for (const auto& [module, weights] : adapter.modules) {
    QALORA_REQUIRE(widths.contains(module) && base.contains(module + ".biases"), DataError, base.folder().string(),
                   ": module '", module, "' has no offsets to merge into");
  }
  for (const std::string& name : base.names()) {
    throw_if_stopped();
    const std::string module = io::module_of(name);
    if (!name.ends_with(".biases") || !base.contains(module + ".scales")) continue;
    double worst = 0;
    if (adapter.modules.contains(module)) {
      const int64_t in_features = widths.at(module);
      worst = worst_of_module(base, adapter, merged, module, in_features,
                              config.quantization->group_size_of(module, in_features));
    } else if (!std::ranges::equal(base.bytes(name).span, merged.bytes(name).span)) {
      worst = std::numeric_limits<double>::infinity();
    }
    base.release(name);
    merged.release(name);
    check.offsets += static_cast<int64_t>(base.info(name).bytes()) / io::dtype_bytes(base.info(name).dtype);
    if (!(worst <= check.worst)) {
      check.worst = worst;
      check.worst_name = name;
    }
    if (std::isnan(check.worst)) break;
  }
  return check;
}

}  // namespace qalora::eval
