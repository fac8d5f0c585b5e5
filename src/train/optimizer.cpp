#include "qalora/train/optimizer.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <cmath>

#include "qalora/core/error.h"

namespace qalora::train {

AdamW::AdamW(std::vector<Parameter> parameters, AdamWOptions options)
    : parameters_(std::move(parameters)),
      options_(options) {
  for (const Parameter& parameter : parameters_) {
    exp_avg_.push_back(at::zeros_like(parameter.value.detach()));
    exp_avg_sq_.push_back(at::zeros_like(parameter.value.detach()));
  }
}

void AdamW::zero_grad() {
  for (Parameter& parameter : parameters_) parameter.value.mutable_grad().reset();
}

double AdamW::gradient_norm() const {
  std::vector<at::Tensor> norms;  // f64 scalars, on the device until all are there
  for (const Parameter& parameter : parameters_) {
    if (parameter.value.grad().defined()) norms.push_back(parameter.value.grad().norm(2, at::kDouble));
  }
  return norms.empty() ? 0 : at::stack(norms).to(at::kCPU).norm().item<double>();
}

void AdamW::clip(double norm, double max_norm) {
  if (max_norm <= 0) return;
  const double factor = std::min(1.0, max_norm / (norm + 1e-6));
  if (factor == 1.0) return;
  for (Parameter& parameter : parameters_) {
    if (parameter.value.grad().defined()) parameter.value.mutable_grad().mul_(factor);
  }
}

void AdamW::step(double learning_rate) {
  const c10::NoGradGuard no_grad;
  ++updates_;
  if (!parameters_.empty() && !parameters_.front().value.is_cpu()) return fused_step(learning_rate);
  const double correction1 = 1 - std::pow(options_.beta1, static_cast<double>(updates_));
  const double correction2 = 1 - std::pow(options_.beta2, static_cast<double>(updates_));
  for (size_t i = 0; i < parameters_.size(); ++i) {
    at::Tensor value = parameters_[i].value;
    const at::Tensor& gradient = value.grad();
    if (!gradient.defined()) continue;
    if (parameters_[i].decays && options_.weight_decay > 0) value.mul_(1 - learning_rate * options_.weight_decay);
    exp_avg_[i].lerp_(gradient, 1 - options_.beta1);
    exp_avg_sq_[i].mul_(options_.beta2).addcmul_(gradient, gradient, 1 - options_.beta2);
    const at::Tensor denominator = exp_avg_sq_[i].sqrt().div_(std::sqrt(correction2)).add_(options_.epsilon);
    value.addcdiv_(exp_avg_[i], denominator, -learning_rate / correction1);
  }
}

// The same update by one kernel over all parameters, on an accelerator.
void AdamW::fused_step(double learning_rate) {
  for (const bool decays : {true, false}) {
    std::vector<at::Tensor> values, gradients, averages, squares;
    for (size_t i = 0; i < parameters_.size(); ++i) {
      if (parameters_[i].decays != decays || !parameters_[i].value.grad().defined()) continue;
      values.push_back(parameters_[i].value);
      gradients.push_back(parameters_[i].value.grad().contiguous());
      averages.push_back(exp_avg_[i]);
      squares.push_back(exp_avg_sq_[i]);
    }
    if (values.empty()) continue;
    const at::Tensor updates =
        at::full({}, static_cast<double>(updates_), values.front().options().dtype(at::kFloat).requires_grad(false));
    const std::vector<at::Tensor> steps(values.size(), updates);
    at::_fused_adamw_(values, gradients, averages, squares, {}, steps, learning_rate, options_.beta1, options_.beta2,
                      decays ? options_.weight_decay : 0.0, options_.epsilon, /*amsgrad=*/false, /*maximize=*/false);
    // The operator returns nothing, so LibTorch does not count it as a change; what is kept of A and B elsewhere must
    // see it.
    for (const at::Tensor& value : values) value.unsafeGetTensorImpl()->bump_version();
  }
}

std::map<std::string, at::Tensor> AdamW::state() const {
  std::map<std::string, at::Tensor> result;
  for (size_t i = 0; i < parameters_.size(); ++i) {
    result["exp_avg." + parameters_[i].name] = exp_avg_[i];
    result["exp_avg_sq." + parameters_[i].name] = exp_avg_sq_[i];
  }
  return result;
}

void AdamW::load_state(const std::map<std::string, at::Tensor>& state, int64_t updates, const std::string& source) {
  const auto load = [&](const std::string& name, at::Tensor& into) {
    const auto found = state.find(name);
    QALORA_REQUIRE(found != state.end(), DataError, source, ": tensor '", name, "' is missing");
    QALORA_REQUIRE(found->second.sizes() == into.sizes() && found->second.scalar_type() == at::kFloat, DataError,
                   source, ": tensor '", name, "' has shape ", found->second.sizes(), ", expected f32 ", into.sizes());
    into.copy_(found->second);
  };
  for (size_t i = 0; i < parameters_.size(); ++i) {
    load("exp_avg." + parameters_[i].name, exp_avg_[i]);
    load("exp_avg_sq." + parameters_[i].name, exp_avg_sq_[i]);
  }
  QALORA_REQUIRE(state.size() == 2 * parameters_.size(), DataError, source, ": holds ", state.size(),
                 " tensors, expected ", 2 * parameters_.size());
  updates_ = updates;
}

}  // namespace qalora::train
