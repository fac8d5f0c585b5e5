// AdamW (Loshchilov & Hutter, arXiv:1711.05101) with decoupled weight decay, and gradient clipping by the global norm.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace qalora::train {

struct Parameter {
  std::string name;
  at::Tensor value;    // f32, requires a gradient; updated in place
  bool decays = true;  // weight decay applies
};

struct AdamWOptions {
  double beta1 = 0.9, beta2 = 0.999, epsilon = 1e-8, weight_decay = 0;
};

class AdamW {
 public:
  AdamW(std::vector<Parameter> parameters, AdamWOptions options);

  void zero_grad();
  // Euclidean norm of all gradients together, summed in double.
  double gradient_norm() const;
  // Scales gradients by min(1, max_norm / (norm + 1e-6)), as torch's clip_grad_norm_; max_norm 0 leaves them alone.
  void clip(double norm, double max_norm);
  void step(double learning_rate);

  int64_t updates() const { return updates_; }  // how often step() ran: Adam's t
  const std::vector<Parameter>& parameters() const { return parameters_; }
  // "exp_avg.<name>", "exp_avg_sq.<name>": the moments, f32
  std::map<std::string, at::Tensor> state() const;
  // DataError (beginning with `source`) when a moment is missing or has another shape.
  void load_state(const std::map<std::string, at::Tensor>& state, int64_t updates, const std::string& source);

 private:
  void fused_step(double learning_rate);

  std::vector<Parameter> parameters_;
  AdamWOptions options_;
  std::vector<at::Tensor> exp_avg_, exp_avg_sq_;
  int64_t updates_ = 0;
};

}  // namespace qalora::train
