// GPTQ (Frantar et al., arXiv:2210.17323): rounds a weight column after column and lets the columns still to come make
// up for the error, by what the layer's inputs have in common.
//
// Groups are always contiguous: group k holds inputs [k * group_size, (k + 1) * group_size), in whatever order the
// columns are rounded, so that a pooled adapter merges.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <string>

#include "qalora/quant/packed_weight.h"

namespace qalora::quant {

// H = 2/n X^T X of a linear layer's inputs, gathered batch by batch.
class Hessian {
 public:
  Hessian(int64_t in_features, c10::Device device);
  // x: [tokens, in_features], any float dtype, on the device. Products in fp32, the running sum in fp64: its error does
  // not grow with the number of batches.
  void add(const at::Tensor& x);
  int64_t tokens() const { return tokens_; }
  at::Tensor matrix() const;  // [in_features, in_features] f32, symmetric; zero before the first token

 private:
  at::Tensor sum_;  // [in_features, in_features] f64, blocks on and below the diagonal
  int64_t tokens_ = 0;
};

// Rows that a thread takes at once on the CPU: enough for products at full speed, few enough for every thread to get
// some. Not a share of the threads there are, so that products of the same shapes give the same result on any number of
// them.
inline constexpr int64_t kGptqRows = 128;

// How a group's scale and offset come from its weights.
enum class ScaleSearch {
  kMinMax,  // the grid spans the weights
  kMse,     // it spans the part of their range that makes the squared rounding error least, each input weighed by H's
            // diagonal
};

// The defaults are those with the lowest loss (tests/bench/RESULTS.md); what other programs do is `reference_rule()`.
struct GptqOptions {
  int bits = 4;
  int64_t group_size = 32;    // kWholeRow for whole rows
  double damping = 0.01;      // of the mean of H's diagonal; grows tenfold until the Cholesky factor exists
  bool static_groups = true;  // scales of all groups before the first column, instead of from the updated weights
  // Columns are rounded by falling diagonal of H: all of them with static groups, else those of a group, and the groups
  // by their largest.
  bool act_order = true;
  bool integer_zeros = false;  // offsets are -scale * (whole number), as GPTQ's files need; also after the refit
  ScaleSearch search = ScaleSearch::kMse;
  bool refit = true;  // least squares for scales and offsets against the damped H, once the codes are fixed
  int sweeps = 2;     // of the refit in which codes are chosen again as well, group after group
  int64_t block_columns = 128;

  // Scales from the updated weights, integer zero points, columns as they stand, nothing afterwards: what GPTQ's
  // authors do.
  static GptqOptions reference_rule(int bits, int64_t group_size);
};

struct GptqResult {
  PackedWeight weight;  // on the CPU
  double error = 0;     // relative Frobenius error of the weight
  double loss = 0;      // tr((W - Wq) H (W - Wq)^T), undamped H; sums in double of products in fp32
  double loss_before_refit = 0;
  double loss_round_to_nearest = 0;  // of round_to_nearest.h
  double damping = 0;                // that the factor needed, as a share of the mean diagonal
  int64_t dead_inputs = 0;           // inputs that were always zero
  double factor_seconds = 0, solve_seconds = 0, refit_seconds = 0;  // the first is the solver's, for all its matrices
};

// Rounds matrices that read the same inputs: what follows from H alone (the columns' order, the factor of its inverse,
// the refit's normal equations) is made once.
class GptqSolver {
 public:
  // hessian: Hessian::matrix(), on the device that does the products and the factorisation; the columns' own loop runs
  // on the CPU. `name` begins every message. DataError when H holds values that are not finite, or is so far from
  // positive semidefinite that no damping helps.
  GptqSolver(const std::string& name, const at::Tensor& hessian, const GptqOptions& options);
  ~GptqSolver();
  // weight: [out_features, in_features], any float dtype; DataError when it holds values that are not finite. A dead
  // input's weight becomes the nearest the grid has to zero: it never matters.
  GptqResult solve(const std::string& name, const at::Tensor& weight) const;

 private:
  struct Shared;
  class Rows;
  std::unique_ptr<const Shared> shared_;
  double factor_seconds_ = 0;
};

// One matrix alone.
GptqResult gptq(const std::string& name, const at::Tensor& weight, const at::Tensor& hessian,
                const GptqOptions& options);

}  // namespace qalora::quant
