#include "qalora/quant/gptq.h"

#include <ATen/ATen.h>

#include <chrono>

#include "gptq_columns.h"
#include "gptq_refit.h"
#include "qalora/core/error.h"
#include "qalora/quant/round_to_nearest.h"

namespace qalora::quant {
namespace {

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

void check_options(const GptqOptions& options) {
  QALORA_CHECK(options.bits >= 2 && options.bits <= 4, "bits ", options.bits);
  QALORA_CHECK(options.group_size > 0 || options.group_size == kWholeRow, "group size ", options.group_size);
  QALORA_CHECK(options.damping >= 0 && options.damping <= 1, "damping ", options.damping);
  QALORA_CHECK(options.block_columns > 0 && options.sweeps >= 0, "blocks of ", options.block_columns, " columns, ", options.sweeps,
               " sweeps");
}

void check_hessian(const std::string& name, const at::Tensor& weight, const at::Tensor& hessian) {
  const int64_t columns = weight.size(1);
  QALORA_CHECK(hessian.scalar_type() == at::kFloat && hessian.sizes() == at::IntArrayRef({columns, columns}), "a Hessian of shape ",
               hessian.sizes(), " for ", columns, " inputs");
  QALORA_REQUIRE(at::isfinite(hessian.sum(at::kDouble)).item<bool>(), DataError, name,
                 ": H = 2/n X^T X of the layer's inputs is not finite: the model's activations overflow before this layer; calibrate in "
                 "float32, or with other data");
}

// Inputs that were always zero: their weight is 0, and H gets the mean of the other inputs there, so that it can be factored.
// Differs from the packages: they put 1 whatever H's size is, so that what a dead input does to the damping depends on the unit of X.
int64_t fill_dead(at::Tensor& weight, at::Tensor& hessian) {
  const at::Tensor diagonal = hessian.diagonal(), dead = diagonal.le(0);
  const auto count = dead.sum().item<int64_t>();
  if (count == 0) return 0;
  const int64_t live = diagonal.numel() - count;
  const double sum = at::where(dead, at::zeros_like(diagonal), diagonal).sum(at::kDouble).item<double>();
  const double mean = live == 0 ? 1.0 : sum / static_cast<double>(live);
  hessian = hessian.clone();
  hessian.diagonal().masked_fill_(dead, mean);
  weight = weight.masked_fill(dead.unsqueeze(0), 0);
  return count;
}

}  // namespace

GptqOptions GptqOptions::reference_rule(int bits, int64_t group_size) {
  GptqOptions options;
  options.bits = bits, options.group_size = group_size;
  options.static_groups = options.act_order = options.refit = false;
  options.integer_zeros = true;
  options.search = ScaleSearch::kMinMax;
  options.sweeps = 0;
  return options;
}

GptqResult gptq(const std::string& name, const at::Tensor& weight, const at::Tensor& hessian, const GptqOptions& options) {
  check_options(options);
  GptqResult result;
  const QuantizeResult nearest = round_to_nearest(name, weight, options.bits, options.group_size);  // refuses a weight that is not finite
  check_hessian(name, weight, hessian);
  const auto device = hessian.device();
  const at::Tensor dense = weight.to(device, at::kFloat);
  result.loss_round_to_nearest = losses_of(dense.sub(nearest.weight.dequantize(at::kFloat).to(device)), hessian).sum().item<double>();

  const double start = now();
  at::Tensor target = dense, filled = hessian;
  result.dead_inputs = fill_dead(target, filled);
  const at::Tensor importance = hessian.diagonal().to(at::kCPU).clamp_min(0).contiguous(), on_cpu = target.to(at::kCPU).contiguous();
  const int64_t group_size = nearest.weight.group_size;
  const std::vector<int64_t> order = column_order(importance, group_size, options);
  InverseFactor factor = inverse_factor(name, filled, order, options.damping);
  result.damping = factor.damping;
  const double factored = now();
  Rounded rounded = static_grids(on_cpu, importance, group_size, options);
  const at::Tensor places = at::tensor(order, at::kLong).to(device);
  round_columns(target.index_select(1, places), factor.upper, order, importance, options, rounded);
  factor.upper.reset();
  const double solved = now();

  if (options.refit) {
    Residual residual = residual_of(dense, rounded, hessian);
    result.loss_before_refit = residual.loss();
    if (options.sweeps > 0) improve_codes(dense, hessian, options, residual, rounded);
    fit_scales(dense, hessian, options.integer_zeros, residual, rounded);
    result.loss = residual.loss();
  } else {
    result.loss = result.loss_before_refit = losses_of(dense.sub(rounded.dense().to(device)), hessian).sum().item<double>();
  }
  result.factor_seconds = factored - start, result.solve_seconds = solved - factored, result.refit_seconds = now() - solved;
  QALORA_REQUIRE(at::isfinite(rounded.scales).all().item<bool>() && at::isfinite(rounded.offsets).all().item<bool>(), DataError, name,
                 ": the weights with the errors of those before them are more than fp32 can hold");
  result.weight = rounded.packed();
  const double norm = dense.norm(at::Scalar(2), at::kDouble).item<double>();
  const at::Tensor difference = dense.sub(rounded.dense().to(device));
  result.error = norm > 0 ? difference.norm(at::Scalar(2), at::kDouble).item<double>() / norm : 0;
  return result;
}

}  // namespace qalora::quant
