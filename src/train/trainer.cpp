#include "qalora/train/trainer.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <cmath>

#include "qalora/core/error.h"
#include "qalora/core/signals.h"
#include "qalora/train/schedule.h"

namespace qalora::train {

namespace {

// Micro-batches of one step draw different dropout masks: step and micro-batch make one index.
uint64_t dropout_index(int64_t step, size_t micro_batch) { return (static_cast<uint64_t>(step) << 20) | micro_batch; }

model::Recompute recompute_of(const TrainConfig& c) {
  if (!c.gradient_checkpointing) return model::Recompute::kNothing;
  return c.recompute == "mlp" ? model::Recompute::kMlp : model::Recompute::kLayer;
}

}  // namespace

StepResult Trainer::step() {
  const std::vector<text::Batch> batches = data_.step(state_.step);
  int64_t trained_tokens = 0;
  StepResult result;
  for (const text::Batch& batch : batches) {
    trained_tokens += batch.trained_tokens;
    result.tokens += batch.real_tokens;
  }
  QALORA_CHECK(trained_tokens > 0, "step ", state_.step, " has tokens to train on");
  model::ForwardOptions options;
  options.recompute = recompute_of(config_);
  at::Tensor loss_sum;  // f64, on the device: read once, when the whole step is under way
  for (size_t i = 0; i < batches.size(); ++i) {
    if (stop_signal() != 0) {
      optimizer_.zero_grad();
      throw_if_stopped();
    }
    options.dropout = {
        .training = true, .seed = static_cast<uint64_t>(config_.seed), .index = dropout_index(state_.step, i)};
    const at::Tensor hidden = model_.forward(batches[i], options);  // [rows * length, hidden]
    const at::Tensor sum = model_.loss_sum(hidden, batches[i].targets.reshape({-1}));
    const at::Tensor wide = sum.detach().to(at::kDouble);
    loss_sum = loss_sum.defined() ? loss_sum + wide : wide;
    // Divided by the counted tokens of the whole step, not of this micro-batch: cutting a batch in parts changes
    // nothing.
    (sum / static_cast<double>(trained_tokens)).backward();
  }
  result.loss = loss_sum.item<double>() / static_cast<double>(trained_tokens);
  result.gradient_norm = optimizer_.gradient_norm();
  result.learning_rate =
      learning_rate_at(config_.schedule, config_.learning_rate, config_.warmup_steps, config_.steps, state_.updates);
  result.skipped = !std::isfinite(result.loss) || !std::isfinite(result.gradient_norm);
  if (!result.skipped) {
    updating_ = true;
    optimizer_.clip(result.gradient_norm, config_.max_grad_norm);
    optimizer_.step(result.learning_rate);
    updating_ = false;
    ++state_.updates;
  }
  optimizer_.zero_grad();
  ++state_.step;
  state_.skipped += result.skipped ? 1 : 0;
  state_.skipped_in_a_row = result.skipped ? state_.skipped_in_a_row + 1 : 0;
  state_.tokens += result.tokens;
  state_.trained_tokens += trained_tokens;
  return result;
}

double Trainer::held_out_loss() {
  const c10::NoGradGuard no_grad;
  double sum = 0;
  int64_t tokens = 0;
  for (int64_t i = 0; i < data_.held_out_batches(); ++i) {
    throw_if_stopped();
    const text::Batch batch = data_.held_out_batch(i);
    sum += model_.loss_sum(model_.forward(batch), batch.targets.reshape({-1})).item<double>();
    tokens += batch.trained_tokens;
  }
  QALORA_REQUIRE(tokens > 0, DataError, "the held-out examples have no token to score");
  return sum / static_cast<double>(tokens);
}

}  // namespace qalora::train
