// Linear layers that read the same input (q, k, v; gate, up), as one product on an accelerator: fewer and larger
// kernels.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "qalora/model/linear.h"

namespace qalora::model {

class LinearStack {
 public:
  LinearStack() = default;
  // Moves the parts' weights into one piece of memory, of which they become views, where their tiled shapes allow it
  // (the same bits and groups, whole tiles of rows); else the stack stays empty and the layers are used one by one.
  explicit LinearStack(std::vector<Linear*> parts);

  // For inference, where one product serves all: the weights are stacked, nothing is trained, and each adapter folds
  // into its offsets. Training lets go of the offsets that were kept. `parts`: the layers given at the start, wherever
  // they lie now.
  bool serves(const std::vector<const Linear*>& parts, const DropoutKey& dropout) const;
  // -> each part's output [tokens, its out_features] in x's dtype
  std::vector<at::Tensor> forward(const std::vector<const Linear*>& parts, const quant::PooledInput& x) const;

 private:
  std::shared_ptr<quant::TiledWeight> whole_;
  FoldedOffsets folded_;
};

}  // namespace qalora::model
