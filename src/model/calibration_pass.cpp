#include "qalora/model/calibration_pass.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "qalora/core/error.h"
#include "qalora/core/signals.h"

namespace qalora::model {
namespace {

// Rows of one length behind one another, as one forward pass takes them.
struct Joined {
  std::vector<int64_t> ids, positions;
  std::vector<std::pair<int64_t, int64_t>> segments;  // [begin, end)

  void add(const text::CalibrationRow& row) {
    const int64_t offset = std::ssize(ids), length = std::ssize(row.ids);
    ids.insert(ids.end(), row.ids.begin(), row.ids.end());
    for (size_t i = 0; i < row.starts.size(); ++i) {
      const int64_t begin = row.starts[i], end = i + 1 < row.starts.size() ? row.starts[i + 1] : length;
      segments.emplace_back(offset + begin, offset + end);
      for (int64_t position = 0; position < end - begin; ++position) positions.push_back(position);
    }
  }
};

}  // namespace

CalibrationPass::CalibrationPass(std::string source, const LlamaConfig& config,
                                 const std::vector<text::CalibrationRow>& rows, const PassOptions& options)
    : source_(std::move(source)),
      config_(config),
      options_(options) {
  QALORA_CHECK(!rows.empty(), "there is something to calibrate on");
  int64_t longest = 0;
  for (const auto& row : rows) longest = std::max(longest, std::ssize(row.ids));
  const Rope rope(config, longest, options.device);
  for (size_t begin = 0; begin < rows.size();) {
    Joined joined;
    size_t end = begin;
    for (; end < rows.size() && end - begin < static_cast<size_t>(options.batch_size); ++end) joined.add(rows[end]);
    const at::Tensor positions = at::tensor(joined.positions, at::kLong).to(options.device);
    const auto [cos, sin] = rope.at(positions);
    batches_.push_back({at::tensor(joined.ids, at::kLong).to(options.device),
                        {cos, sin},
                        Segments(joined.segments, options.device),
                        {},
                        {},
                        {}});
    tokens_ += std::ssize(joined.ids);
    begin = end;
  }
}

void CalibrationPass::embed(const at::Tensor& embedding) {
  for (Batch& batch : batches_) batch.h = at::embedding(embedding, batch.ids).to(at::kFloat);
}

void CalibrationPass::show(const std::string& layers, const at::Tensor& x, const Observe& observe) const {
  throw_if_stopped();
  // The largest absolute value is NaN where one is.
  QALORA_REQUIRE(
      at::isfinite(x.abs().max()).item<bool>(), DataError, source_, ": the inputs of '", layers,
      "' are not finite for the calibration's tokens; the checkpoint is damaged, or is not what its config.json says");
  observe(x);
}

at::Tensor CalibrationPass::mix(const Layer& layer, const Batch& batch) const {
  const quant::PooledInput x = model::attention_input(config_, options_.compute, layer, batch.h);
  const auto [q, k, v] = attention_heads(config_, layer, x, batch.rotation, {});
  return attention(q, k, v, batch.segments);
}

at::Tensor CalibrationPass::product(const Layer& layer, const at::Tensor& middle) const {
  return model::mlp_product(layer, model::mlp_input(config_, options_.compute, layer, middle), {}).values;
}

void CalibrationPass::attention_input(const std::string& module, const Layer& layer, const Observe& observe) {
  for (const Batch& batch : batches_) {
    show(module + "self_attn.q_proj", model::attention_input(config_, options_.compute, layer, batch.h).values,
         observe);
  }
}

void CalibrationPass::attend(const std::string& module, const Layer& layer, const Observe& observe) {
  for (Batch& batch : batches_) {
    batch.mixed = mix(layer, batch);
    show(module + "self_attn.o_proj", batch.mixed, observe);
  }
}

void CalibrationPass::mlp_input(const std::string& module, const Layer& layer, const Observe& observe) {
  for (Batch& batch : batches_) {
    batch.h.add_(layer.o.forward(batch.mixed, {}));
    batch.mixed.reset();
    show(module + "mlp.gate_proj", model::mlp_input(config_, options_.compute, layer, batch.h).values, observe);
  }
}

void CalibrationPass::mlp_product(const std::string& module, const Layer& layer, const Observe& observe) {
  for (Batch& batch : batches_) {
    const at::Tensor made = product(layer, batch.h);
    if (options_.keep_products) batch.product = made;
    show(module + "mlp.down_proj", made, observe);
  }
}

void CalibrationPass::finish(const Layer& layer) {
  for (Batch& batch : batches_) {
    throw_if_stopped();
    batch.h.add_(layer.down.forward(batch.product.defined() ? batch.product : product(layer, batch.h), {}));
    batch.product.reset();
  }
}

void CalibrationPass::observe_all(const std::string& module, const Layer& layer,
                                  const std::vector<Observe>& observers) {
  for (const Batch& batch : batches_) {
    show(module + "self_attn.q_proj", model::attention_input(config_, options_.compute, layer, batch.h).values,
         observers.at(0));
    const at::Tensor mixed = mix(layer, batch);
    show(module + "self_attn.o_proj", mixed, observers.at(1));
    const at::Tensor middle = at::add(batch.h, layer.o.forward(mixed, {}));
    show(module + "mlp.gate_proj", model::mlp_input(config_, options_.compute, layer, middle).values, observers.at(2));
    show(module + "mlp.down_proj", product(layer, middle), observers.at(3));
  }
}

void CalibrationPass::run(const Layer& layer) {
  for (Batch& batch : batches_) {
    throw_if_stopped();
    batch.h.add_(layer.o.forward(mix(layer, batch), {}));
    batch.h.add_(layer.down.forward(product(layer, batch.h), {}));
  }
}

}  // namespace qalora::model
