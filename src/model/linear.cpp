#include "qalora/model/linear.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "qalora/core/error.h"
#include "qalora/tensor/random.h"

namespace qalora::model {

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::tensor_list;

// y = x . W^T with a frozen, packed W. Nothing of x is kept, because a frozen weight needs no gradient and dX = dY . W does not contain x.
class PackedProduct : public torch::autograd::Function<PackedProduct> {
 public:
  // x: [tokens, in_features] -> [tokens, out_features] f32
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const quant::PackedWeight& weight) {
    ctx->save_for_backward({weight.codes, weight.scales, weight.offsets});
    ctx->saved_data["in_features"] = weight.in_features;
    ctx->saved_data["group_size"] = weight.group_size;
    ctx->saved_data["bits"] = static_cast<int64_t>(weight.bits);
    ctx->saved_data["compute"] = x.scalar_type();
    return weight.multiply(x);
  }

  static tensor_list backward(AutogradContext* ctx, const tensor_list& grads) {
    const auto saved = ctx->get_saved_variables();
    quant::PackedWeight weight{.codes = saved[0], .scales = saved[1], .offsets = saved[2]};
    weight.in_features = ctx->saved_data["in_features"].toInt();
    weight.group_size = ctx->saved_data["group_size"].toInt();
    weight.bits = static_cast<int>(ctx->saved_data["bits"].toInt());
    const at::ScalarType compute = ctx->saved_data["compute"].toScalarType();
    return {grads[0].to(compute).matmul(weight.dequantize(compute)), at::Tensor()};
  }
};

// A dense W: frozen in the compute dtype, or trained in f32 and rounded for each product (autograd then keeps x, else not).
at::Tensor dense_product(const at::Tensor& x, const at::Tensor& weight) {
  return x.matmul(weight.to(x.scalar_type()).t());
}

// pool(x): [tokens, in_features] -> [tokens, groups] f32. Autograd keeps nothing of x here: the gradient of a sum is its
// gradient repeated. Differs from the official code (AvgPool1d) in offering the paper's sum as well.
at::Tensor pool(const at::Tensor& x, int64_t group_size, io::Pooling pooling) {
  const at::Tensor sums = quant::pool_sums(x, group_size);
  if (pooling == io::Pooling::kSum) return sums;
  const int64_t groups = sums.size(1), missing = groups * group_size - x.size(1);
  if (missing == 0) return sums / static_cast<double>(group_size);
  at::Tensor lengths = at::full({groups}, static_cast<double>(group_size), at::kFloat);
  lengths[groups - 1] = static_cast<double>(group_size - missing);
  return sums / lengths;
}

}  // namespace

Linear::Linear(std::string module, at::Tensor dense) : module_(std::move(module)), dense_(std::move(dense)) {}

Linear::Linear(std::string module, quant::PackedWeight packed)
    : module_(std::move(module)), packed_(std::make_shared<quant::PackedWeight>(std::move(packed))) {}

int64_t Linear::in_features() const { return packed_ ? packed_->in_features : dense_.size(1); }
int64_t Linear::out_features() const { return packed_ ? packed_->out_features() : dense_.size(0); }
uint64_t Linear::weight_bytes() const { return packed_ ? packed_->bytes() : dense_.nbytes(); }

at::Tensor Linear::forward(const at::Tensor& x, const DropoutKey& dropout) const {
  at::Tensor y = packed_ ? PackedProduct::apply(x, *packed_) : dense_product(x, dense_);  // [tokens, out_features]
  if (bias.defined()) y = y + bias.to(y.scalar_type());
  if (!adapter) return y.to(x.scalar_type());
  // The adapter runs in f32 beside the base whatever the compute dtype: folded into bf16 weights its small numbers drown.
  const bool pooled = adapter->pooling != io::Pooling::kNone;
  at::Tensor inputs = pooled ? pool(x, adapter->group_size, adapter->pooling) : x.to(at::kFloat);  // [tokens, groups]
  if (dropout.training && adapter->dropout > 0) {
    tensor::RandomStream random(dropout.seed, "dropout/" + module_, dropout.index);
    inputs = inputs * random.dropout_mask(inputs.sizes(), adapter->dropout);
  }
  const at::Tensor change = inputs.matmul(adapter->a.t()).matmul(adapter->b.t()) * adapter->scaling;  // [tokens, out_features] f32
  return at::add(y, change).to(x.scalar_type());
}

}  // namespace qalora::model
