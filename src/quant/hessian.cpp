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
  const at::Tensor lower = sum_.mul(2.0 / static_cast<double>(std::max<int64_t>(1, tokens_))).to(at::kFloat).tril_();
  return lower.add(lower.tril(-1).t());
}

}  // namespace qalora::quant
