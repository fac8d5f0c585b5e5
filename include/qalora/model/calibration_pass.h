// Calibration tokens on their way through a model, one block at a time: their states lie here, the blocks come and go.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "qalora/model/block.h"
#include "qalora/model/llama.h"
#include "qalora/text/calibration.h"

namespace qalora::model {

struct PassOptions {
  at::ScalarType compute = at::kFloat;
  c10::Device device = c10::kCPU;
  int64_t batch_size = 1;  // rows of one forward pass
  bool keep_products =
      true;  // what gate and up gave is kept for down instead of being made twice; the numbers are the same
};

class CalibrationPass {
 public:
  // source: begins messages
  CalibrationPass(std::string source, const LlamaConfig& config, const std::vector<text::CalibrationRow>& rows,
                  const PassOptions& options);

  // Called with what a layer reads: x: [tokens, in_features] in the compute dtype.
  using Observe = std::function<void(const at::Tensor& x)>;

  // embedding: [vocab, hidden] on the device. The states before the first block.
  void embed(const at::Tensor& embedding);

  // The steps of a block, in this order. Each runs the layers before the ones whose inputs it shows, which must have
  // their weights by then. module: begins messages ("model.layers.3."). DataError naming block and layer when an input
  // is not finite.
  void attention_input(const std::string& module, const Layer& layer,
                       const Observe& observe);                                        // shows the inputs of q, k, v
  void attend(const std::string& module, const Layer& layer, const Observe& observe);  // runs q, k, v; shows o's
  void mlp_input(const std::string& module, const Layer& layer,
                 const Observe& observe);  // runs o; shows those of gate, up
  void mlp_product(const std::string& module, const Layer& layer,
                   const Observe& observe);  // runs gate, up; shows down's
  void finish(const Layer& layer);           // runs down: the states behind the block

  // The whole block on the present states, which stay: the four inputs in the order above.
  void observe_all(const std::string& module, const Layer& layer, const std::vector<Observe>& observers);
  // The whole block: the states behind it.
  void run(const Layer& layer);

  const at::Tensor& states(int64_t batch) const { return batches_[batch].h; }  // [tokens, hidden] f32
  int64_t batches() const { return std::ssize(batches_); }
  int64_t tokens() const { return tokens_; }

 private:
  struct Batch {
    at::Tensor ids;  // [tokens] i64
    Rotation rotation;
    Segments segments;
    at::Tensor h;        // [tokens, hidden] f32
    at::Tensor mixed;    // [tokens, heads * head_dim]: between two steps only
    at::Tensor product;  // [tokens, intermediate]: likewise, where it is kept
  };
  at::Tensor mix(const Layer& layer, const Batch& batch) const;
  at::Tensor product(const Layer& layer, const at::Tensor& middle) const;
  void show(const std::string& layers, const at::Tensor& x, const Observe& observe) const;

  std::string source_;
  const LlamaConfig& config_;
  PassOptions options_;
  std::vector<Batch> batches_;
  int64_t tokens_ = 0;
};

}  // namespace qalora::model
