#include "qalora/model/linear.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/custom_function.h>

#include "qalora/core/error.h"
#include "qalora/tensor/products.h"
#include "qalora/tensor/random.h"

namespace qalora::model {

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::tensor_list;

// y = x . W^T with a frozen, packed W. Nothing of x is kept, because a frozen weight needs no gradient and dX = dY . W
// does not contain x.
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
    quant::PackedWeight weight;
    weight.codes = saved[0];
    weight.scales = saved[1];
    weight.offsets = saved[2];
    weight.in_features = ctx->saved_data["in_features"].toInt();
    weight.group_size = ctx->saved_data["group_size"].toInt();
    weight.bits = static_cast<int>(ctx->saved_data["bits"].toInt());
    const at::ScalarType compute = ctx->saved_data["compute"].toScalarType();
    return {grads[0].to(compute).matmul(weight.dequantize(compute)), at::Tensor()};
  }
};

struct TiledCall : torch::CustomClassHolder {
  TiledCall(std::shared_ptr<const quant::TiledWeight> w, std::shared_ptr<ResidentPanels> p)
      : weight(std::move(w)),
        panels(std::move(p)) {}
  std::shared_ptr<const quant::TiledWeight> weight;
  std::shared_ptr<ResidentPanels> panels;  // null: written at each visit
};

// y = x . W'^T with a frozen, tiled W whose offsets contain the adapter, b + k B A. The adapter is constant inside a
// group, so everything that belongs to a token ends at dZ = pool(x)^T dY; of x only its sums are kept, and no
// activation of rank r is ever made.
class TiledProduct : public torch::autograd::Function<TiledProduct> {
 public:
  // x.values -> [tokens, out_features]; a, b: the adapter's, or empty where there is none (autograd takes no undefined
  // inputs); scaling = k
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& values, const at::Tensor& a, const at::Tensor& b,
                            double scaling, const c10::intrusive_ptr<TiledCall>& call, const quant::PooledInput& x) {
    const quant::TiledWeight& weight = *call->weight;
    at::Tensor sums = x.sums;
    if (a.requires_grad() && !sums.defined()) sums = quant::pool_sums(values, weight.shape.group_size);
    ctx->save_for_backward({a.requires_grad() ? sums : at::Tensor(), a, b});
    ctx->saved_data["weight"] = c10::IValue::make_capsule(call);
    ctx->saved_data["scaling"] = scaling;
    ctx->saved_data["compute"] = values.scalar_type();
    const quant::PooledInput input(values, sums, x.panel);
    if (!call->panels || a.numel() == 0 || !weight.wants_panel(values.size(0), values.scalar_type()))
      return weight.multiply(input, offsets(weight, a, b, scaling));
    call->panels->refresh(weight, values.scalar_type(), a, b, [&] { return offsets(weight, a, b, scaling); });
    return weight.multiply_panel(input, call->panels->forward);
  }

  static tensor_list backward(AutogradContext* ctx, const tensor_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const at::Tensor &sums = saved[0], &a = saved[1], &b = saved[2];
    const auto call = c10::static_intrusive_pointer_cast<TiledCall>(ctx->saved_data["weight"].toCapsule());
    const quant::TiledWeight& weight = *call->weight;
    const double scaling = ctx->saved_data["scaling"].toDouble();
    const at::ScalarType compute = ctx->saved_data["compute"].toScalarType();
    const at::Tensor dy = grads[0].to(compute);
    at::Tensor dx, da, db;
    if (ctx->needs_input_grad(0)) {
      const bool kept = call->panels && a.numel() > 0 && weight.wants_panel(dy.size(0), compute);
      dx = dy.matmul(kept ? call->panels->backward : weight.dequantize(compute, offsets(weight, a, b, scaling)));
    }
    if (sums.defined()) {
      // dA and dB are linear in dZ, so each micro-batch adds its own at once: a tenth of a percent of the products
      // here, and no buffer of [out_features, groups] a layer until the step's end.
      // In bf16 the sums are rounded once more, by 2^-9 each and without bias: as much as the rounding of dY itself.
      const at::Tensor dz = tensor::product_f32(dy.t(), sums.to(compute));  // [out_features, groups]
      da = b.t().mm(dz).mul_(scaling);
      db = dz.mm(a.t()).mul_(scaling);
    }
    return {dx, da, db, at::Tensor(), at::Tensor(), at::Tensor()};
  }

 private:
  static at::Tensor offsets(const quant::TiledWeight& weight, const at::Tensor& a, const at::Tensor& b,
                            double scaling) {
    return a.numel() > 0 ? weight.folded(a, b, scaling) : weight.offsets;
  }
};

// A dense W: frozen in the compute dtype, or trained in f32 and rounded for each product (autograd then keeps x, else
// not).
at::Tensor dense_product(const at::Tensor& x, const at::Tensor& weight) {
  return x.matmul(weight.to(x.scalar_type()).t());
}

// pool(x): [tokens, in_features] -> [tokens, groups] f32. Autograd keeps nothing of x here: the gradient of a sum is
// its gradient repeated. Differs from the official code (AvgPool1d) in offering the paper's sum as well.
at::Tensor pool(const at::Tensor& x, int64_t group_size, io::Pooling pooling) {
  const at::Tensor sums = quant::pool_sums(x, group_size);
  if (pooling == io::Pooling::kSum) return sums;
  const int64_t groups = sums.size(1), missing = groups * group_size - x.size(1);
  if (missing == 0) return sums / static_cast<double>(group_size);
  at::Tensor lengths = at::full({groups}, static_cast<double>(group_size), sums.options());
  lengths[groups - 1] = static_cast<double>(group_size - missing);
  return sums / lengths;
}

}  // namespace

Linear::Linear(std::string module, at::Tensor dense) : module_(std::move(module)), dense_(std::move(dense)) {}

Linear::Linear(std::string module, quant::PackedWeight packed) : module_(std::move(module)) {
  input_order_ = std::exchange(packed.input_order, at::Tensor());
  packed_ = std::make_shared<quant::PackedWeight>(std::move(packed));
}

int64_t Linear::in_features() const {
  return packed_ ? packed_->in_features : tiled_ ? tiled_->shape.in_features : dense_.size(1);
}
int64_t Linear::out_features() const {
  return packed_ ? packed_->out_features() : tiled_ ? tiled_->shape.out_features : dense_.size(0);
}
int64_t Linear::groups() const { return packed_ ? packed_->groups() : tiled_->shape.groups(); }
uint64_t Linear::weight_bytes() const {
  return packed_ ? packed_->bytes() : tiled_ ? tiled_->bytes() : dense_.nbytes();
}

void Linear::to(c10::Device device) {
  if (packed_ && !device.is_cpu()) {
    tiled_ = std::make_shared<quant::TiledWeight>(quant::tile(module_, *packed_, device));
    packed_.reset();
  }
  if (dense_.defined()) dense_ = dense_.detach().to(device).requires_grad_(dense_.requires_grad());
  if (bias.defined()) bias = bias.to(device);
  if (input_order_.defined()) input_order_ = input_order_.to(device);
}

void ResidentPanels::refresh(const quant::TiledWeight& weight, at::ScalarType dtype, const at::Tensor& a,
                             const at::Tensor& b, const std::function<at::Tensor()>& offsets) {
  // Versions only grow, and a layer's A and B stay the same tensors while it trains.
  const int64_t version = static_cast<int64_t>(a._version()) + static_cast<int64_t>(b._version());
  if (forward.defined() && version == version_ && forward.scalar_type() == dtype) return;
  const at::Tensor moved = offsets();
  forward = weight.panel(dtype, moved);
  backward = weight.dequantize(dtype, moved);
  version_ = version;
}

void Linear::keep_panels(bool keep) { panels_ = keep && tiled_ ? std::make_shared<ResidentPanels>() : nullptr; }

const at::Tensor& FoldedOffsets::get(const std::vector<const Linear*>& parts,
                                     const std::function<at::Tensor()>& make) const {
  std::vector<std::pair<at::Tensor, int64_t>> versions;
  for (const Linear* part : parts) {
    if (!part->adapter) continue;
    for (const at::Tensor& tensor : {part->adapter->a, part->adapter->b})
      versions.emplace_back(tensor, static_cast<int64_t>(tensor._version()));
  }
  const auto same = [](const auto& one, const auto& other) {
    return one.first.is_same(other.first) && one.second == other.second;
  };
  if (!offsets_.defined() || !std::equal(versions.begin(), versions.end(), versions_.begin(), versions_.end(), same)) {
    offsets_ = make();
    versions_ = std::move(versions);
  }
  return offsets_;
}

bool trains(const DropoutKey& dropout) { return dropout.training || c10::GradMode::is_enabled(); }

void Linear::set_tiled(quant::TiledWeight weight) {
  tiled_ = std::make_shared<quant::TiledWeight>(std::move(weight));
  folded_.drop();
}

bool Linear::folds(const DropoutKey& dropout) const {
  if (!tiled_ || !adapter || adapter->beside || adapter->pooling == io::Pooling::kNone) return false;
  const bool whole_groups = adapter->pooling == io::Pooling::kSum || in_features() % adapter->group_size == 0;
  return whole_groups && adapter->group_size == tiled_->shape.group_size && !(dropout.training && adapter->dropout > 0);
}

double Linear::folded_scaling() const {
  return adapter->scaling / (adapter->pooling == io::Pooling::kMean ? static_cast<double>(adapter->group_size) : 1.0);
}

at::Tensor Linear::folded_offsets() const {
  return adapter ? tiled_->folded(adapter->a, adapter->b, folded_scaling()) : tiled_->offsets;
}

at::Tensor Linear::base_product(const quant::PooledInput& x, bool folded, const DropoutKey& dropout) const {
  if (packed_) return PackedProduct::apply(x.values, *packed_);
  if (!tiled_) return dense_product(x.values, dense_);
  if (!trains(dropout)) {
    return tiled_->multiply(x, folded ? folded_.get({this}, [this] { return folded_offsets(); }) : tiled_->offsets);
  }
  folded_.drop();  // training: A and B move each step
  const auto call = c10::make_intrusive<TiledCall>(tiled_, panels_);
  const at::Tensor none = at::empty({0}, x.values.options().requires_grad(false));
  if (!folded) return TiledProduct::apply(x.values, none, none, 0.0, call, x);
  return TiledProduct::apply(x.values, adapter->a, adapter->b, folded_scaling(), call, x);
}

at::Tensor Linear::forward(const quant::PooledInput& as_it_comes, const DropoutKey& dropout) const {
  const at::ScalarType dtype = as_it_comes.values.scalar_type();
  // Sums of inputs that lie side by side mean nothing where groups do not.
  const quant::PooledInput x =
      input_order_.defined() ? quant::PooledInput(as_it_comes.values.index_select(1, input_order_)) : as_it_comes;
  const bool folded = folds(dropout);
  at::Tensor y = base_product(x, folded, dropout);  // [tokens, out_features]
  if (bias.defined()) y = y + bias.to(y.scalar_type());
  if (!adapter || folded) return y.to(dtype);
  // The adapter runs in f32 beside the base whatever the compute dtype: folded into bf16 weights its small numbers
  // drown.
  const bool pooled = adapter->pooling != io::Pooling::kNone;
  at::Tensor inputs = pooled ? pool(x.values, adapter->group_size, adapter->pooling)
                             : as_it_comes.values.to(at::kFloat);  // [tokens, groups]
  if (dropout.training && adapter->dropout > 0) {
    tensor::RandomStream random(dropout.seed, "dropout/" + module_, dropout.index);
    inputs = inputs * random.dropout_mask(inputs.sizes(), adapter->dropout).to(inputs.device());
  }
  const at::Tensor change =
      inputs.matmul(adapter->a.t()).matmul(adapter->b.t()) * adapter->scaling;  // [tokens, out_features] f32
  return at::add(y, change).to(dtype);
}

}  // namespace qalora::model
