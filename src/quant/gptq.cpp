#include "qalora/quant/gptq.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <optional>

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
  QALORA_CHECK(options.block_columns > 0 && options.sweeps >= 0, "blocks of ", options.block_columns, " columns, ",
               options.sweeps, " sweeps");
}

void check_hessian(const std::string& name, const at::Tensor& hessian) {
  QALORA_CHECK(hessian.scalar_type() == at::kFloat && hessian.dim() == 2 && hessian.size(0) == hessian.size(1) &&
                   hessian.size(0) > 0,
               "a Hessian of shape ", hessian.sizes());
  QALORA_REQUIRE(
      at::isfinite(hessian.sum(at::kDouble)).item<bool>(), DataError, name,
      ": H = 2/n X^T X of the layer's inputs is not finite: the model's activations overflow before this layer; calibrate in "
      "float32, or with other data");
}

// Inputs that were always zero: H gets the mean of the other inputs there, so that it can be factored. Their weights
// count as 0. Differs from the packages: they put 1 whatever H's size is, so that what a dead input does to the damping
// depends on the unit of X. dead: [in_features] bool
at::Tensor without_dead(const at::Tensor& hessian, const at::Tensor& dead) {
  const at::Tensor diagonal = hessian.diagonal();
  const int64_t live = diagonal.numel() - dead.sum().item<int64_t>();
  if (live == diagonal.numel()) return hessian;
  const double sum = at::where(dead, at::zeros_like(diagonal), diagonal).sum(at::kDouble).item<double>();
  at::Tensor filled = hessian.clone();
  filled.diagonal().masked_fill_(dead, live == 0 ? 1.0 : sum / static_cast<double>(live));
  return filled;
}

// What came out for some rows.
struct Sums {
  double loss = 0, loss_before_refit = 0, loss_round_to_nearest = 0, difference = 0,
         norm = 0;  // the last two are sums of squares
  double solve_seconds = 0, refit_seconds = 0;
};

double square_sum(const at::Tensor& values) { return values.to(at::kDouble).square_().sum().item<double>(); }

int64_t group_size_for(int64_t columns, const GptqOptions& options) {
  return options.group_size == kWholeRow ? columns : options.group_size;
}

}  // namespace

// What follows from H alone, before any weight is seen.
struct GptqSolver::Shared {
  Shared(const std::string& name, const at::Tensor& hessian, const GptqOptions& options)
      : hessian(hessian),
        options(options),
        group_size(group_size_for(hessian.size(0), options)),
        importance(hessian.diagonal().to(at::kCPU).clamp_min(0).contiguous()),
        order(column_order(importance, group_size, options)),
        places(at::tensor(order, at::kLong).to(hessian.device())),
        dead(hessian.diagonal().le(0)) {
    const at::Tensor live = without_dead(hessian, dead);
    factor = inverse_factor(name, live, order, options.damping);
    if (!options.refit) return;
    damped = hessian.clone();
    const at::Tensor added = live.diagonal().mean().mul(factor.damping);
    damped.diagonal().add_(at::where(dead, at::zeros_like(added), added));
    equations.emplace(damped, kernels::groups_per_row(hessian.size(0), group_size), group_size, !options.integer_zeros);
  }

  at::Tensor hessian;  // [in_features, in_features] f32
  GptqOptions options;
  int64_t group_size;
  at::Tensor importance;  // [in_features] f32 CPU
  std::vector<int64_t> order;
  at::Tensor places;  // the same on the device
  at::Tensor dead;    // [in_features] bool
  InverseFactor factor;
  at::Tensor damped;  // H that the refit works with: [in_features, in_features] f32
  std::optional<NormalEquations> equations;
};

// All that the rows of a matrix share. Rows do not know of each other: on the CPU each thread takes some of them all
// the way, and never waits for another; a device takes all at once.
class GptqSolver::Rows {
 public:
  Rows(const Shared& shared, const at::Tensor& weight, const PackedWeight& nearest)
      : shared_(shared),
        options_(shared.options),
        weight_(weight),
        hessian_(shared.hessian),
        nearest_(nearest) {}

  // Rows [begin, begin + count) of `packed`.
  Sums run(int64_t begin, int64_t count, PackedWeight& packed) const {
    Sums sums;
    const at::Tensor dense = weight_.narrow(0, begin, count).to(hessian_.device(), at::kFloat);
    const double start = now();
    Rounded rounded = walk(dense.masked_fill(shared_.dead.unsqueeze(0), 0));
    const double walked = now();
    Residual residual;
    if (options_.refit) {
      residual = refit(dense, rounded, sums);
    } else {
      residual.difference = dense.sub(rounded.dense().to(dense.device()));
      residual.losses = losses_of(residual.difference, hessian_);
      sums.loss_before_refit = residual.loss();
    }
    sums.loss = residual.loss();
    sums.solve_seconds = walked - start, sums.refit_seconds = now() - walked;
    sums.loss_round_to_nearest =
        losses_of(dense.sub(nearest_rows(begin, count).to(dense.device())), hessian_).sum().item<double>();
    sums.difference = square_sum(residual.difference), sums.norm = square_sum(dense);
    put(rounded, begin, packed);
    return sums;
  }

 private:
  // dense: [rows, in_features] f32 on the device
  Rounded walk(const at::Tensor& dense) const {
    Rounded rounded = static_grids(dense.to(at::kCPU).contiguous(), shared_.importance, shared_.group_size, options_);
    round_columns(dense.index_select(1, shared_.places), shared_.factor.upper, shared_.order, shared_.importance,
                  options_, rounded);
    return rounded;
  }

  // Fitted to the damped H: where the calibration's inputs say little, the weights stay near what they were. Fitted to
  // H itself they drift there, at no loss on these inputs and at a large one on others. Rows whose loss on H itself
  // would rise stay as they are.
  Residual refit(const at::Tensor& dense, Rounded& rounded, Sums& sums) const {
    const Rounded before = rounded;
    const auto difference_of = [&](const Rounded& rows) { return dense.sub(rows.dense().to(dense.device())); };
    const at::Tensor losses_before = losses_of(difference_of(before), hessian_);
    sums.loss_before_refit = losses_before.sum().item<double>();
    Residual residual = residual_of(dense, rounded, shared_.damped);
    if (options_.sweeps > 0) improve_codes(dense, shared_.damped, options_, residual, rounded);
    fit_scales(dense, shared_.damped, *shared_.equations, options_.integer_zeros, residual, rounded);
    const at::Tensor losses = losses_of(difference_of(rounded), hessian_);
    const at::Tensor worse =
        losses.le(losses_before).logical_not().to(at::kCPU).unsqueeze(1);  // [rows, 1]; NaN is worse
    rounded.codes = at::where(worse, before.codes, rounded.codes);
    rounded.scales = at::where(worse, before.scales, rounded.scales);
    rounded.offsets = at::where(worse, before.offsets, rounded.offsets);
    residual.losses = at::minimum(losses, losses_before);
    residual.difference = difference_of(rounded);
    return residual;
  }

  at::Tensor nearest_rows(int64_t begin, int64_t count) const {
    PackedWeight rows = nearest_;
    rows.codes = rows.codes.narrow(0, begin, count), rows.scales = rows.scales.narrow(0, begin, count);
    rows.offsets = rows.offsets.narrow(0, begin, count);
    return rows.dequantize(at::kFloat);
  }

  static void put(const Rounded& rounded, int64_t begin, PackedWeight& packed) {
    packed.scales.narrow(0, begin, rounded.rows()).copy_(rounded.scales);
    packed.offsets.narrow(0, begin, rounded.rows()).copy_(rounded.offsets);
    const at::Tensor codes = rounded.codes.contiguous();
    const uint8_t* from = codes.const_data_ptr<uint8_t>();
    auto* to = reinterpret_cast<uint32_t*>(packed.codes.data_ptr<int32_t>()) + begin * packed.codes.size(1);
    for (int64_t row = 0; row < rounded.rows(); ++row) {
      kernels::pack_row(from + row * rounded.columns(), rounded.columns(), rounded.bits,
                        to + row * packed.codes.size(1));
    }
  }

  const Shared& shared_;
  const GptqOptions& options_;
  const at::Tensor &weight_, &hessian_;
  const PackedWeight& nearest_;
};

GptqOptions GptqOptions::reference_rule(int bits, int64_t group_size) {
  GptqOptions options;
  options.bits = bits, options.group_size = group_size;
  options.static_groups = options.act_order = options.refit = false;
  options.integer_zeros = true;
  options.search = ScaleSearch::kMinMax;
  options.sweeps = 0;
  return options;
}

GptqSolver::GptqSolver(const std::string& name, const at::Tensor& hessian, const GptqOptions& options) {
  check_options(options);
  check_hessian(name, hessian);
  const double start = now();
  shared_ = std::make_unique<Shared>(name, hessian, options);
  factor_seconds_ = now() - start;
}

GptqSolver::~GptqSolver() = default;

GptqResult GptqSolver::solve(const std::string& name, const at::Tensor& weight) const {
  const GptqOptions& options = shared_->options;
  const at::Tensor& hessian = shared_->hessian;
  QALORA_CHECK(weight.dim() == 2 && weight.size(1) == hessian.size(0), "a weight of shape ", weight.sizes(),
               " for a Hessian of ", hessian.size(0), " inputs");
  const QuantizeResult nearest =
      round_to_nearest(name, weight, options.bits, options.group_size);  // refuses a weight that is not finite
  const Rows solver(*shared_, weight, nearest.weight);
  GptqResult result;
  result.damping = shared_->factor.damping, result.dead_inputs = shared_->dead.sum().item<int64_t>();
  result.factor_seconds = factor_seconds_;

  result.weight = nearest.weight;
  result.weight.codes = at::empty_like(nearest.weight.codes),
  result.weight.scales = at::empty_like(nearest.weight.scales);
  result.weight.offsets = at::empty_like(nearest.weight.offsets);
  const int64_t rows = weight.size(0), step = hessian.is_cpu() ? kGptqRows : rows, parts = (rows + step - 1) / step;
  std::vector<Sums> sums(static_cast<size_t>(parts));
  const auto run = [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part)
      sums[part] = solver.run(part * step, std::min(step, rows - part * step), result.weight);
  };
  const double solving = now();
  hessian.is_cpu() ? at::parallel_for(0, parts, 1, run) : run(0, parts);
  const double taken = now() - solving;

  Sums sum;
  for (const Sums& part : sums) {
    sum.loss += part.loss, sum.loss_before_refit += part.loss_before_refit,
        sum.loss_round_to_nearest += part.loss_round_to_nearest;
    sum.difference += part.difference, sum.norm += part.norm;
    sum.solve_seconds += part.solve_seconds, sum.refit_seconds += part.refit_seconds;
  }
  result.loss = sum.loss, result.loss_before_refit = sum.loss_before_refit,
  result.loss_round_to_nearest = sum.loss_round_to_nearest;
  result.error = sum.norm > 0 ? std::sqrt(sum.difference / sum.norm) : 0;
  const double share =
      sum.solve_seconds / std::max(1e-9, sum.solve_seconds + sum.refit_seconds);  // of threads that ran side by side
  result.solve_seconds = taken * share, result.refit_seconds = taken * (1 - share);
  const bool finite =
      at::isfinite(result.weight.scales).logical_and_(at::isfinite(result.weight.offsets)).all().item<bool>();
  QALORA_REQUIRE(finite, DataError, name,
                 ": the weights with the errors of those before them are more than fp32 can hold");
  return result;
}

GptqResult gptq(const std::string& name, const at::Tensor& weight, const at::Tensor& hessian,
                const GptqOptions& options) {
  return GptqSolver(name, hessian, options).solve(name, weight);
}

}  // namespace qalora::quant
