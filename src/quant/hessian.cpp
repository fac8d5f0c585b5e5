#include <ATen/ATen.h>

#include <algorithm>

#include "qalora/core/error.h"
#include "qalora/quant/gptq.h"

namespace qalora::quant {
namespace {

// H is symmetric: only blocks of this many columns, on and below the diagonal, are computed.
constexpr int64_t kPanel = 1024;

}  // namespace

Hessian::Hessian(int64_t in_features, c10::Device device) : sum_(at::zeros({in_features, in_features}, at::dtype(at::kDouble).device(device))) {}

void Hessian::add(const at::Tensor& x) {
  const int64_t columns = sum_.size(0);
  QALORA_CHECK(x.dim() == 2 && x.size(1) == columns, "inputs of shape ", x.sizes(), " for a layer of ", columns);
  if (x.size(0) == 0) return;
  const at::Tensor inputs = x.to(at::kFloat);
  for (int64_t first = 0; first < columns; first += kPanel) {
    const int64_t count = std::min(kPanel, columns - first);
    const at::Tensor panel = inputs.narrow(1, first, columns - first).t().mm(inputs.narrow(1, first, count));  // [columns - first, count]
    sum_.narrow(0, first, columns - first).narrow(1, first, count).add_(panel);
  }
  tokens_ += x.size(0);
}

at::Tensor Hessian::matrix() const {
  const int64_t columns = sum_.size(0);
  const double factor = 2.0 / static_cast<double>(std::max<int64_t>(1, tokens_));
  at::Tensor matrix = at::empty({columns, columns}, sum_.options().dtype(at::kFloat));
  for (int64_t first = 0; first < columns; first += kPanel) {  // no second matrix in fp64
    const int64_t count = std::min(kPanel, columns - first), rest = columns - first - count;
    const at::Tensor panel = sum_.narrow(1, first, count).narrow(0, first, columns - first).mul(factor).to(at::kFloat);
    const at::Tensor corner = panel.narrow(0, 0, count).tril();
    matrix.narrow(0, first, count).narrow(1, first, count).copy_(corner.add(corner.tril(-1).t()));
    matrix.narrow(0, first + count, rest).narrow(1, first, count).copy_(panel.narrow(0, count, rest));
    matrix.narrow(0, first, count).narrow(1, first + count, rest).copy_(panel.narrow(0, count, rest).t());
  }
  return matrix;
}

}  // namespace qalora::quant
