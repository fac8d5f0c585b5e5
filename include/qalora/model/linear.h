// One linear layer: dense or quantised, with or without an adapter, behind one type.
//   y = x . W^T + bias + scaling * pool(x) . A^T . B^T
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "qalora/io/adapter_file.h"
#include "qalora/quant/packed_weight.h"
#include "qalora/quant/tiled_weight.h"

namespace qalora::model {

// What a layer adds to its base. a and b are the trained tensors (f32); the optimizer updates them in place.
struct Adapter {
  at::Tensor a;  // [rank, groups] f32, or [rank, in_features] without pooling
  at::Tensor b;  // [out_features, rank] f32
  double scaling = 0;
  io::Pooling pooling = io::Pooling::kSum;
  int64_t group_size = 0;  // of the pooling; the length of a whole group
  double dropout = 0;      // probability, applied to the pooled input, in training only
  bool beside =
      false;  // on an accelerator too: a product of its own beside the base's, not folded into the base's offsets
};

// Which random numbers dropout draws: a function of these, so that a recomputed or resumed step drops the same entries.
struct DropoutKey {
  bool training = false;
  uint64_t seed = 0;
  uint64_t index = 0;  // optimizer step and micro-batch, combined by the trainer
};

// Is this a pass of training? The first pass of a recomputed layer asks for no gradients but is one.
bool trains(const DropoutKey& dropout);

class Linear;

// A layer's weight in 16 bits, adapter and all, kept from one micro-batch to the next: where memory allows it, it is
// written once a step instead of at every visit.
class ResidentPanels {
 public:
  // Written anew when A or B have moved since. offsets(): the folded ones
  void refresh(const quant::TiledWeight& weight, at::ScalarType dtype, const at::Tensor& a, const at::Tensor& b,
               const std::function<at::Tensor()>& offsets);
  at::Tensor forward;   // quant::TiledWeight::panel
  at::Tensor backward;  // [out_features, in_features]

 private:
  int64_t version_ = -1;
};

// Offsets with adapters folded in, kept between the tokens of an inference: made anew when an adapter's numbers have
// moved.
class FoldedOffsets {
 public:
  // f32 in lane order; make() is called when there are none of these parts' present A and B.
  const at::Tensor& get(const std::vector<const Linear*>& parts, const std::function<at::Tensor()>& make) const;
  void drop() const { offsets_.reset(), versions_.clear(); }

 private:
  mutable at::Tensor offsets_;
  mutable std::vector<std::pair<at::Tensor, int64_t>>
      versions_;  // each A and B, and how often it had been changed in place
};

class Linear {
 public:
  Linear() = default;
  Linear(std::string module, at::Tensor dense);  // [out_features, in_features], any float dtype
  Linear(std::string module, quant::PackedWeight packed);

  // x: [tokens, in_features] in the compute dtype -> [tokens, out_features] in x's dtype. The base is frozen unless
  // `dense` requires a gradient (method "full").
  at::Tensor forward(const quant::PooledInput& x, const DropoutKey& dropout) const;
  // Moves weight and bias; a packed weight becomes a tiled one on an accelerator (and does not come back).
  void to(c10::Device device);

  const std::string& module() const { return module_; }
  int64_t in_features() const;
  int64_t out_features() const;
  int64_t groups() const;  // of a quantised one
  bool quantised() const { return packed_ != nullptr || tiled_ != nullptr; }
  const quant::PackedWeight& packed() const { return *packed_; }    // quantised, on the CPU; without its input_order
  const quant::TiledWeight* tiled() const { return tiled_.get(); }  // quantised, on an accelerator; else null
  void set_tiled(quant::TiledWeight weight);
  // Training on an accelerator keeps the weight in 16 bits as well, or no longer does.
  void keep_panels(bool keep);
  // Is this layer's adapter, on an accelerator, folded into the offsets? Where that is not the same function it runs
  // beside them.
  bool folds(const DropoutKey& dropout) const;
  // offsets + k B A of an adapter that folds, or the offsets where there is none.
  at::Tensor folded_offsets() const;
  // Where the groups do not lie side by side in the input (io/input_order.h): everything about the weight, and what an
  // adapter pools, is in this order, into which forward() brings its input. [in_features] i64 or undefined
  const at::Tensor& input_order() const { return input_order_; }
  at::Tensor& dense() { return dense_; }
  const at::Tensor& dense() const { return dense_; }
  uint64_t weight_bytes() const;

  at::Tensor bias;                   // [out_features] or undefined
  std::shared_ptr<Adapter> adapter;  // null: none

 private:
  double folded_scaling() const;  // k
  at::Tensor base_product(const quant::PooledInput& x, bool folded, const DropoutKey& dropout) const;

  std::string module_;
  at::Tensor dense_;
  at::Tensor input_order_;
  std::shared_ptr<const quant::PackedWeight> packed_;
  std::shared_ptr<const quant::TiledWeight> tiled_;
  FoldedOffsets folded_;
  std::shared_ptr<ResidentPanels> panels_;
};

}  // namespace qalora::model
