// GPTQ (Frantar et al., arXiv:2210.17323): rounds a weight column after column and lets the columns still to come make up for the error, by
// what the layer's inputs have in common.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>

#include "qalora/quant/packed_weight.h"

namespace qalora::quant {

// H = 2/n X^T X of a linear layer's inputs, gathered batch by batch.
class Hessian {
 public:
  Hessian(int64_t in_features, c10::Device device);
  // x: [tokens, in_features], any float dtype, on the device. Products in fp32, the running sum so that its error does not grow with the
  // number of batches.
  void add(const at::Tensor& x);
  int64_t tokens() const { return tokens_; }
  at::Tensor matrix() const;  // [in_features, in_features] f32

 private:
  at::Tensor sum_;
  int64_t tokens_ = 0;
};

enum class ScaleSearch { kMinMax, kMse };

struct GptqOptions {
  int bits = 4;
  int64_t group_size = 32;       // kWholeRow for whole rows
  double damping = 0.01;         // of the mean of H's diagonal; grows until the Cholesky factor exists
  bool static_groups = false;    // scales of all groups before the first column, instead of from the updated weights
  ScaleSearch search = ScaleSearch::kMinMax;
  bool refit = true;             // least squares for scales and offsets against H, once the codes are fixed
  int64_t block_columns = 128;
};

struct GptqResult {
  PackedWeight weight;             // on the CPU
  double error = 0;                // relative Frobenius error of the weight
  double loss = 0;                 // tr((W - Wq) H (W - Wq)^T), undamped H, double
  double loss_before_refit = 0;
  double loss_round_to_nearest = 0;
  double damping = 0;              // that the factor needed, as a share of the mean diagonal
  int64_t dead_inputs = 0;         // inputs that were always zero
};

// weight: [out_features, in_features], any float dtype; hessian: Hessian::matrix(), on the device that does the work. `name` begins every message. DataError when
// either holds values that are not finite.
GptqResult gptq(const std::string& name, const at::Tensor& weight, const at::Tensor& hessian, const GptqOptions& options);

}  // namespace qalora::quant
