#include "qalora/tensor/products.h"

#include <ATen/ATen.h>

namespace qalora::tensor {

at::Tensor product_f32(const at::Tensor& a, const at::Tensor& b) {
  if (a.scalar_type() == at::kFloat) return a.mm(b);
  if (a.is_cuda()) return at::mm(a, b, at::kFloat);
  return a.to(at::kFloat).mm(b.to(at::kFloat));
}

}  // namespace qalora::tensor
