#include "gptq_refit.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>

#include "qalora/core/error.h"

namespace qalora::quant {
namespace {

// Codes are measured from an origin: the middle of their range, which keeps "how steep" and "how high" nearly
// independent of each other; with integer zeros from the zero point, which is what a scale then turns about.
// -> [out_features, groups] f32 on the CPU
at::Tensor origins_of(const Rounded& rounded, bool integer_zeros) {
  if (!integer_zeros) return at::full_like(rounded.scales, (std::ldexp(1.0, rounded.bits) - 1) / 2);
  const at::Tensor scales = at::where(rounded.scales > 0, rounded.scales, at::ones_like(rounded.scales));
  return rounded.offsets.div(scales).neg_().round_();
}

// Takes the changes of scales and of the values at the origins. All [out_features, groups] f32 on the CPU.
void move(Rounded& rounded, const at::Tensor& origins, const at::Tensor& scale_change, const at::Tensor& offset_change,
          bool integer_zeros) {
  rounded.scales = rounded.scales.add(scale_change);
  rounded.offsets = integer_zeros ? rounded.scales.mul(origins).neg_()
                                  : rounded.offsets.add(offset_change).sub_(scale_change.mul(origins));
}

// Takes the rows of `next` where `losses` are lower. -> which: [out_features, 1] bool on the CPU; false where either
// loss is NaN
at::Tensor take_better(const at::Tensor& losses, const at::Tensor& losses_now, const Rounded& next, Rounded& rounded) {
  const at::Tensor better = losses.lt(losses_now).to(at::kCPU).unsqueeze(1);
  rounded.codes = at::where(better, next.codes, rounded.codes);
  rounded.scales = at::where(better, next.scales, rounded.scales);
  rounded.offsets = at::where(better, next.offsets, rounded.offsets);
  return better;
}

// H with rows and columns padded by zeros to whole groups.
at::Tensor padded(const at::Tensor& matrix, int64_t rows, int64_t columns) {
  if (matrix.size(0) == rows && matrix.size(1) == columns) return matrix;
  return at::constant_pad_nd(matrix, {0, columns - matrix.size(1), 0, rows - matrix.size(0)});
}

// The part of each row's change that keeps every scale positive: on the way to the optimum the loss falls all along.
// scales, changes: [rows, groups] f64 -> [rows, 1] f64 in (0, 1]
at::Tensor step_of(const at::Tensor& scales, const at::Tensor& changes) {
  constexpr double kSafety = 0.9;
  const at::Tensor limit =
      at::where(changes.lt(0).logical_and(scales > 0), scales.div(changes.neg()).mul_(kSafety), at::ones_like(scales));
  return limit.amin(1, true).clamp_max_(1.0);
}

// One group's step in scale and offset for all rows.
struct GroupStep {
  at::Tensor scale, offset;  // [rows] f64: changes, the offset at the origin
};

// codes: [rows, size] f32 from the origin; gradient: [rows, size]; block: H's [size, size]; scales: [rows] f32
GroupStep group_step(const at::Tensor& codes, const at::Tensor& gradient, const at::Tensor& block,
                     const at::Tensor& scales, bool integer_zeros) {
  const at::Tensor product = codes.mm(block);  // [rows, size]
  const at::Tensor steep = product.mul(codes).sum(1, false, at::kDouble),
                   slope = gradient.mul(codes).sum(1, false, at::kDouble);
  const at::Tensor zero = at::zeros_like(steep), now = scales.to(at::kDouble);
  const auto usable = [&](const at::Tensor& change) {
    return at::isfinite(change).logical_and(now.add(change) > now.mul(0.01));
  };
  if (integer_zeros) {
    const at::Tensor change = slope.div(steep);
    return {at::where(usable(change).logical_and(steep > 0), change, zero), zero};
  }
  const at::Tensor mixed = product.sum(1, false, at::kDouble), level = gradient.sum(1, false, at::kDouble);
  const double flat = block.sum(at::kDouble).item<double>();
  if (!(flat > 0)) return {zero, zero};
  constexpr double kIndependent = 1e-5;  // above fp32's rounding of the products
  const at::Tensor determinant = steep.mul(flat).sub_(mixed.square());
  const at::Tensor change = slope.mul(flat).sub_(level.mul(mixed)).div_(determinant);
  const at::Tensor fits = usable(change).logical_and_(determinant > steep.mul(flat * kIndependent));
  const at::Tensor scale = at::where(fits, change, zero);
  return {scale, level.sub(mixed.mul(scale)).div_(flat)};
}

// Codes of some columns of one group, one after the other: the nearest to the minimum of the loss in that code alone.
struct CodeWork {
  const float* hessian;  // [size, size]
  const float* scales;   // [rows], of the group, `scale_stride` apart
  int64_t scale_stride;
  uint8_t* codes;  // [rows, size], `code_stride` apart
  int64_t code_stride;
  float* gradient;  // [rows, size]; kept up to date inside these columns
  float* change;    // [rows, size]; what the weights change by
  int64_t size;
  int top;
};

void improve_row(const CodeWork& work, int64_t row) {
  const float scale = work.scales[row * work.scale_stride];
  float *gradient = work.gradient + row * work.size, *change = work.change + row * work.size;
  uint8_t* codes = work.codes + row * work.code_stride;
  for (int64_t i = 0; i < work.size; ++i) {
    const float* across = work.hessian + i * work.size;
    change[i] = 0;
    const float curvature = scale * across[i];
    if (!(curvature > 0)) continue;
    const float code = codes[i], top = static_cast<float>(work.top), place = code + gradient[i] / curvature;
    const float inside = place > 0 ? (place < top ? place : top) : 0.0F;
    const float next = static_cast<float>(static_cast<int>(inside + 0.5F)), step = scale * (next - code);
    // Written so that NaN changes nothing; a tie does not either, or two codes could take turns for ever.
    if (!(step * (2 * gradient[i] - step * across[i]) > 0)) continue;
    codes[i] = static_cast<uint8_t>(next);
    change[i] = step;
    for (int64_t j = 0; j < work.size; ++j) gradient[j] -= step * across[j];
  }
}

// One sweep over one window of whole groups, whose H is `corner`.
class Window {
 public:
  // gradient: [rows, in_features] f32 on the device
  Window(const at::Tensor& gradient, const at::Tensor& hessian, int64_t first, int64_t size, const GptqOptions& options,
         Rounded& rounded)
      : first_(first),
        size_(size),
        options_(options),
        rounded_(rounded),
        gradient_(gradient.narrow(1, first, size).clone()),
        corner_(hessian.narrow(0, first, size).narrow(1, first, size).contiguous()),
        change_(at::zeros_like(gradient_)) {}

  // -> [rows, size] f32: what the weights changed by
  at::Tensor run() {
    for (int64_t begin = 0; begin < size_; begin += rounded_.group_size) {
      const int64_t count = std::min(rounded_.group_size, size_ - begin);
      fit_group(begin, count);
      for (int64_t part = begin; part < begin + count; part += options_.block_columns) {
        improve(part, std::min(options_.block_columns, begin + count - part));
      }
    }
    return change_;
  }

 private:
  void take(int64_t begin, int64_t count, const at::Tensor& change) {
    change_.narrow(1, begin, count).add_(change);
    gradient_.addmm_(change, corner_.narrow(0, begin, count), 1, -1);
  }

  void fit_group(int64_t begin, int64_t count) {
    const int64_t group = (first_ + begin) / rounded_.group_size;
    const auto device = gradient_.device();
    at::Tensor scales = rounded_.scales.select(1, group), offsets = rounded_.offsets.select(1, group);
    const Rounded one{rounded_.codes, scales.unsqueeze(1), offsets.unsqueeze(1), count, rounded_.bits};
    const at::Tensor origins = origins_of(one, options_.integer_zeros);  // [rows, 1]
    const at::Tensor codes = rounded_.codes.narrow(1, first_ + begin, count).to(at::kFloat).sub_(origins).to(device);
    const at::Tensor block = corner_.narrow(0, begin, count).narrow(1, begin, count);
    const GroupStep step =
        group_step(codes, gradient_.narrow(1, begin, count), block, scales.to(device), options_.integer_zeros);
    Rounded moved = one;
    const auto column = [](const at::Tensor& values) { return values.to(at::kCPU, at::kFloat).unsqueeze(1); };
    move(moved, origins, column(step.scale), column(step.offset), options_.integer_zeros);
    // What fp32 made of it, so that the gradient follows the weights and not the wish.
    const at::Tensor used = moved.scales.sub(one.scales),
                     raised = moved.offsets.sub(one.offsets).add_(used.mul(origins));
    scales.copy_(moved.scales.squeeze(1)), offsets.copy_(moved.offsets.squeeze(1));
    take(begin, count, codes.mul(used.to(device)).add_(raised.to(device)));
  }

  void improve(int64_t begin, int64_t count) {
    const int64_t column = first_ + begin, group = column / rounded_.group_size, rows = rounded_.rows();
    at::Tensor gradient = gradient_.narrow(1, begin, count).to(at::kCPU).contiguous();
    if (gradient.is_alias_of(gradient_)) gradient = gradient.clone();
    const at::Tensor block = corner_.narrow(0, begin, count).narrow(1, begin, count).to(at::kCPU).contiguous();
    const at::Tensor change = at::empty({rows, count}, at::kFloat);
    const CodeWork work{block.const_data_ptr<float>(),
                        rounded_.scales.const_data_ptr<float>() + group,
                        rounded_.groups(),
                        rounded_.codes.data_ptr<uint8_t>() + column,
                        rounded_.columns(),
                        gradient.data_ptr<float>(),
                        change.data_ptr<float>(),
                        count,
                        (1 << rounded_.bits) - 1};
    at::parallel_for(0, rows, 1, [&](int64_t from, int64_t to) {
      for (int64_t row = from; row < to; ++row) improve_row(work, row);
    });
    take(begin, count, change.to(gradient_.device()));
  }

  int64_t first_, size_;
  const GptqOptions& options_;
  Rounded& rounded_;
  at::Tensor gradient_, corner_, change_;
};

}  // namespace

NormalEquations::NormalEquations(const at::Tensor& hessian, int64_t groups, int64_t group_size, bool offsets)
    : groups_(groups),
      size_(group_size),
      offsets_(offsets),
      hessian_(padded(hessian, groups * group_size, groups * group_size)) {
  if (!offsets) return;
  sums_ = hessian_.reshape({-1, groups, size_}).sum(-1);                              // [columns, groups]
  offset_block_ = sums_.reshape({groups, size_, groups}).sum(1, false, at::kDouble);  // [groups, groups] f64
}

at::Tensor NormalEquations::solve(const at::Tensor& codes, const at::Tensor& gradient) const {
  const int64_t rows = codes.size(0), columns = groups_ * size_;
  const at::Tensor d = padded(codes, rows, columns), r = padded(gradient, rows, columns);
  // Above the diagonal by rows: below it by columns, which is what LAPACK reads.
  at::Tensor left = at::zeros({rows, unknowns(), unknowns()}, d.options().dtype(at::kDouble));
  fill_scale_block(d, left);
  at::Tensor right = d.mul(r).reshape({rows, groups_, size_}).sum(-1, false, at::kDouble);  // [rows, groups]
  if (offsets_) {
    // C_a H_ab 1_b: [groups, rows, size] x [groups, size, groups]
    const at::Tensor across =
        d.reshape({rows, groups_, size_}).transpose(0, 1).bmm(sums_.reshape({groups_, size_, groups_}));
    left.narrow(1, 0, groups_).narrow(2, groups_, groups_).copy_(across.transpose(0, 1));
    left.narrow(1, groups_, groups_).narrow(2, groups_, groups_).copy_(offset_block_.expand({rows, groups_, groups_}));
    right = at::cat({right, r.reshape({rows, groups_, size_}).sum(-1, false, at::kDouble)}, 1);
  }
  // The products have fp32's rounding: a ridge of that order keeps what they do not determine where it is (right is a
  // residual).
  constexpr double kRidge = 1e-6;
  at::Tensor diagonal = left.diagonal(0, 1, 2);
  diagonal.mul_(1 + kRidge).add_(diagonal.mean(1, true).mul_(kRidge * 1e-3).add_(1e-300));
  const auto [lower, info] = at::linalg_cholesky_ex(left.mT());
  const at::Tensor solved = at::cholesky_solve(right.unsqueeze(2), lower).squeeze(2);
  return at::where(info.eq(0).unsqueeze(1).logical_and(at::isfinite(solved)), solved, at::zeros_like(solved));
}

// C_a H_ab C_b of every pair of groups a <= b. codes: [rows, columns] f32; left: [rows, unknowns, unknowns] f64
void NormalEquations::fill_scale_block(const at::Tensor& codes, at::Tensor& left) const {
  const int64_t rows = codes.size(0);
  for (int64_t a = 0; a < groups_; ++a) {
    const int64_t first = a * size_, rest = groups_ - a;
    const at::Tensor across = hessian_.narrow(0, first, size_).narrow(1, first, rest * size_);
    const at::Tensor part = codes.narrow(1, first, size_).mm(across);  // [rows, rest * size]
    left.select(1, a)
        .narrow(1, a, rest)
        .copy_(part.mul(codes.narrow(1, first, rest * size_)).reshape({rows, rest, size_}).sum(-1));
  }
}

double Residual::loss() const { return losses.sum().item<double>(); }

Residual residual_of(const at::Tensor& weight, const Rounded& rounded, const at::Tensor& hessian) {
  Residual residual;
  residual.difference = weight.sub(rounded.dense().to(weight.device()));
  residual.gradient = residual.difference.mm(hessian);
  // Where H is singular a loss of 0 may be rounded to a little less.
  residual.losses = residual.difference.mul(residual.gradient).sum(1, false, at::kDouble).clamp_min_(0);
  return residual;
}

at::Tensor losses_of(const at::Tensor& difference, const at::Tensor& hessian) {
  // H is symmetric: blocks below the diagonal stand for those above it.
  constexpr int64_t kPanel = 512;
  const int64_t columns = hessian.size(0);
  at::Tensor losses = at::zeros({difference.size(0)}, difference.options().dtype(at::kDouble));
  for (int64_t first = 0; first < columns; first += kPanel) {
    const int64_t count = std::min(kPanel, columns - first), rest = columns - first - count;
    const at::Tensor panel = difference.narrow(1, first, count), across = hessian.narrow(1, first, count);
    at::Tensor product = panel.mm(across.narrow(0, first, count));
    if (rest > 0)
      product.addmm_(difference.narrow(1, first + count, rest), across.narrow(0, first + count, rest), 1, 2);
    losses.add_(product.mul_(panel).sum(1, false, at::kDouble));
  }
  return losses.clamp_min_(0);
}

void improve_codes(const at::Tensor& weight, const at::Tensor& hessian, const GptqOptions& options, Residual& residual,
                   Rounded& rounded) {
  const int64_t columns = rounded.columns();
  // A window holds whole groups, as many as make a block.
  const int64_t window = std::max<int64_t>(1, options.block_columns / rounded.group_size) * rounded.group_size;
  Rounded next = rounded;
  next.codes = rounded.codes.clone(), next.scales = rounded.scales.clone(), next.offsets = rounded.offsets.clone();
  at::Tensor gradient = residual.gradient.clone();
  for (int sweep = 0; sweep < options.sweeps; ++sweep) {
    for (int64_t first = 0; first < columns; first += window) {
      const int64_t size = std::min(window, columns - first);
      const at::Tensor change = Window(gradient, hessian, first, size, options, next).run();
      gradient.addmm_(change, hessian.narrow(0, first, size), 1, -1);
    }
  }
  // The gradient came along, in fp32 as a product afresh would be.
  const at::Tensor difference = weight.sub(next.dense().to(weight.device()));
  const at::Tensor losses = difference.mul(gradient).sum(1, false, at::kDouble).clamp_min_(0);
  const at::Tensor better = take_better(losses, residual.losses, next, rounded).to(weight.device());
  residual.difference = at::where(better, difference, residual.difference);
  residual.gradient = at::where(better, gradient, residual.gradient);
  residual.losses = at::where(better.squeeze(1), losses, residual.losses);
}

void fit_scales(const at::Tensor& weight, const at::Tensor& hessian, const NormalEquations& equations,
                bool integer_zeros, Residual& residual, Rounded& rounded) {
  const int64_t rows = rounded.rows(), groups = rounded.groups();
  const auto device = hessian.device();
  const at::Tensor origins = origins_of(rounded, integer_zeros);
  at::Tensor scale_changes = at::zeros_like(rounded.scales), offset_changes = at::zeros_like(rounded.offsets);
  // As many rows at once as keep the equations in some megabytes: each thread has its own (model/gptq_checkpoint.cpp
  // counts them).
  const int64_t chunk = std::clamp<int64_t>((int64_t{1} << 20) / (equations.unknowns() * equations.unknowns()), 8, 256);
  const at::Tensor group_of = at::arange(rounded.columns(), at::kLong).div_(rounded.group_size, "floor");
  for (int64_t begin = 0; begin < rows; begin += chunk) {
    const int64_t count = std::min(chunk, rows - begin);
    const at::Tensor origin = origins.narrow(0, begin, count).index_select(1, group_of);
    const at::Tensor codes = rounded.codes.narrow(0, begin, count).to(at::kFloat).sub_(origin).to(device);
    const at::Tensor solved =
        equations.solve(codes, residual.gradient.narrow(0, begin, count)).to(at::kCPU);  // [count, unknowns]
    const at::Tensor change = solved.narrow(1, 0, groups),
                     step = step_of(rounded.scales.narrow(0, begin, count).to(at::kDouble), change);
    scale_changes.narrow(0, begin, count).copy_(change.mul(step));
    if (!integer_zeros) offset_changes.narrow(0, begin, count).copy_(solved.narrow(1, groups, groups).mul(step));
  }
  residual.gradient.reset();
  Rounded next = rounded;
  move(next, origins, scale_changes, offset_changes, integer_zeros);
  const at::Tensor difference = weight.sub(next.dense().to(device)), losses = losses_of(difference, hessian);
  const at::Tensor better = take_better(losses, residual.losses, next, rounded).to(device);
  residual.difference = at::where(better, difference, residual.difference);
  residual.losses = at::where(better.squeeze(1), losses, residual.losses);
}

}  // namespace qalora::quant
