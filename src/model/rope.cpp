#include "qalora/model/rope.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cmath>
#include <numbers>

#include "qalora/core/error.h"
#include "qalora/quant/tiled_weight.h"
#include "qalora/tensor/accelerator.h"

namespace qalora::model {

namespace {

std::vector<double> plain_frequencies(double theta, int64_t head_dim) {
  std::vector<double> result(head_dim / 2);
  for (size_t i = 0; i < result.size(); ++i) {
    result[i] = std::pow(theta, -2.0 * static_cast<double>(i) / static_cast<double>(head_dim));
  }
  return result;
}

// Llama 3.1: long wavelengths are stretched by `factor`, short ones kept, those between are blended.
void scale_llama3(const RopeConfig& rope, std::vector<double>& frequencies) {
  const double context = static_cast<double>(rope.original_context);
  for (double& frequency : frequencies) {
    const double wavelength = 2 * std::numbers::pi / frequency;
    if (wavelength < context / rope.high_freq_factor) continue;
    if (wavelength > context / rope.low_freq_factor) {
      frequency /= rope.factor;
      continue;
    }
    const double t = (context / wavelength - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor);
    frequency = (1 - t) * frequency / rope.factor + t * frequency;
  }
}

// YaRN, arXiv:2309.00071: interpolates the dimensions that turn less than beta_slow times over the trained context,
// keeps those that turn more than beta_fast times, and blends in between.
void scale_yarn(const RopeConfig& rope, int64_t head_dim, std::vector<double>& frequencies) {
  const double d = static_cast<double>(head_dim);
  const auto dimension_of = [&](double rotations) {
    return d * std::log(static_cast<double>(rope.original_context) / (rotations * 2 * std::numbers::pi)) /
           (2 * std::log(rope.theta));
  };
  double low = dimension_of(rope.beta_fast), high = dimension_of(rope.beta_slow);
  if (rope.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, d - 1);
  if (low == high) high += 0.001;  // as the reference does, to divide by something
  for (size_t i = 0; i < frequencies.size(); ++i) {
    const double ramp = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
    frequencies[i] = frequencies[i] / rope.factor * ramp + frequencies[i] * (1 - ramp);
  }
}

// out = x * cos + rotate_half(x) * sin; its gradient is the rotation the other way.
class Rotate : public torch::autograd::Function<Rotate> {
 public:
  static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& x, const at::Tensor& cos,
                            const at::Tensor& sin) {
    ctx->save_for_backward({cos, sin});
    return run(x, cos, sin, /*backward=*/false);
  }

  static torch::autograd::tensor_list backward(torch::autograd::AutogradContext* ctx,
                                               const torch::autograd::tensor_list& grads) {
    const auto saved = ctx->get_saved_variables();
    return {run(grads[0], saved[0], saved[1], /*backward=*/true), at::Tensor(), at::Tensor()};
  }

  static at::Tensor run(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin, bool backward) {
    if (const auto* kernels = tensor::device_kernels(x.device())) {
      const at::Tensor rows = x.contiguous(), out = at::empty_like(rows);
      tensor::check_status(
          kernels->rope(rows.const_data_ptr(), quant::kernel_type(rows.scalar_type()), cos.const_data_ptr<float>(),
                        sin.const_data_ptr<float>(), rows.size(0), rows.size(1), rows.size(2), backward, out.data_ptr(),
                        tensor::current_stream(x.device())),
          "rope");
      return out;
    }
    return turn(x, cos, backward ? sin.neg() : sin);
  }

  static at::Tensor turn(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin) {
    const int64_t half = x.size(-1) / 2;
    const at::Tensor c = cos.narrow(-1, 0, half).unsqueeze(1),
                     s = sin.narrow(-1, 0, half).unsqueeze(1);  // [tokens, 1, head_dim / 2]
    const at::Tensor f = x.to(at::kFloat);
    const at::Tensor first = f.narrow(-1, 0, half), second = f.narrow(-1, half, half);
    at::Tensor out = at::empty(f.sizes(), f.options());
    at::Tensor out_first = out.narrow(-1, 0, half), out_second = out.narrow(-1, half, half);
    at::mul_out(out_first, first, c).sub_(second * s);
    at::mul_out(out_second, second, c).add_(first * s);
    return out.to(x.scalar_type());
  }
};

}  // namespace

std::vector<double> Rope::inverse_frequencies(const LlamaConfig& config, int64_t length) {
  const RopeConfig& rope = config.rope;
  double theta = rope.theta;
  if (rope.kind == RopeKind::kDynamic && length > rope.original_context) {
    const double d = static_cast<double>(config.head_dim);
    const double stretch =
        rope.factor * static_cast<double>(length) / static_cast<double>(rope.original_context) - (rope.factor - 1);
    theta *= std::pow(stretch, d / (d - 2));
  }
  std::vector<double> result = plain_frequencies(theta, config.head_dim);
  if (rope.kind == RopeKind::kLinear) {
    for (double& frequency : result) frequency /= rope.factor;
  }
  if (rope.kind == RopeKind::kLlama3) scale_llama3(rope, result);
  if (rope.kind == RopeKind::kYarn) scale_yarn(rope, config.head_dim, result);
  return result;
}

double Rope::attention_factor(const RopeConfig& rope) {
  if (rope.kind != RopeKind::kYarn) return 1;
  if (rope.attention_factor) return *rope.attention_factor;
  const auto scale = [&](double m) { return rope.factor <= 1 ? 1.0 : 0.1 * m * std::log(rope.factor) + 1; };
  if (rope.mscale.value_or(0) != 0 && rope.mscale_all_dim.value_or(0) != 0)
    return scale(*rope.mscale) / scale(*rope.mscale_all_dim);
  return scale(1);
}

Rope::Rope(const LlamaConfig& config, int64_t length, c10::Device device) : length_(length) {
  const std::vector<double> frequencies = inverse_frequencies(config, length);
  const at::Tensor inverse = at::tensor(frequencies, at::kDouble);
  // Angles in double: at position 100,000 an fp32 product is off by 0.004 radians.
  const at::Tensor angles = at::outer(at::arange(length, at::kDouble), inverse);  // [length, head_dim / 2]
  const double factor = attention_factor(config.rope);
  const at::Tensor both = at::cat({angles, angles}, -1);
  cos_ = at::cos(both).mul_(factor).to(at::kFloat).to(device);
  sin_ = at::sin(both).mul_(factor).to(at::kFloat).to(device);
}

std::pair<at::Tensor, at::Tensor> Rope::at(const at::Tensor& positions) const {
  return {cos_.index_select(0, positions), sin_.index_select(0, positions)};
}

at::Tensor Rope::apply(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin) {
  return Rotate::apply(x, cos, sin);
}

}  // namespace qalora::model
