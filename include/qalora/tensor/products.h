// Matrix products whose sums and results are f32 whatever they multiply.
#pragma once

#include <ATen/core/Tensor.h>

namespace qalora::tensor {

// a . b in f32. a: [m, k], b: [k, n] of one dtype. On CUDA 16-bit operands go to the tensor cores as they are;
// elsewhere they are widened.
at::Tensor product_f32(const at::Tensor& a, const at::Tensor& b);

}  // namespace qalora::tensor
