#include "qalora/train/optimizer.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <cmath>

#include "qalora/core/error.h"

namespace qalora::train {

AdamW::AdamW(std::vector<Parameter> parameters, AdamWOptions options) : parameters_(std::move(parameters)), options_(options) {
  for (const Parameter& parameter : parameters_) {
    exp_avg_.push_back(at::zeros_like(parameter.value.detach()));
    exp_avg_sq_.push_back(at::zeros_like(parameter.value.detach()));
  }
}

void AdamW::zero_grad() {
  for (Parameter& parameter : parameters_) parameter.value.mutable_grad().reset();
}

double AdamW::gradient_norm() const {
  double total = 0;
  for (const Parameter& parameter : parameters_) {
    if (!parameter.value.grad().defined()) continue;
    const double norm = parameter.value.grad().norm(2, at::kDouble).item<double>();
    total += norm * norm;
  }
  return std::sqrt(total);
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
    QALORA_REQUIRE(found->second.sizes() == into.sizes() && found->second.scalar_type() == at::kFloat, DataError, source, ": tensor '", name,
                   "' has shape ", found->second.sizes(), ", expected f32 ", into.sizes());
    into.copy_(found->second);
  };
  for (size_t i = 0; i < parameters_.size(); ++i) {
    load("exp_avg." + parameters_[i].name, exp_avg_[i]);
    load("exp_avg_sq." + parameters_[i].name, exp_avg_sq_[i]);
  }
  QALORA_REQUIRE(state.size() == 2 * parameters_.size(), DataError, source, ": holds ", state.size(), " tensors, expected ", 2 * parameters_.size());
  updates_ = updates;
}

}  // namespace qalora::train
