// Small tensors, and what the fake device says.
#pragma once

#include <ATen/ATen.h>

#include <functional>
#include <string>

#include "support/fake_device.h"

namespace qalora::test {

// Distinct, of both signs, no powers of two.
inline at::Tensor numbers(c10::IntArrayRef sizes, c10::ScalarType dtype = c10::kFloat) {
  const int64_t count = c10::multiply_integers(sizes);
  return ((at::arange(count, c10::kDouble) * 0.7 + 0.1).sin() * 1.3).reshape(sizes).to(dtype);
}

inline at::Tensor device(const at::Tensor& tensor) { return tensor.to(use_fake_accelerator()); }

inline bool same_bits(const at::Tensor& a, const at::Tensor& b) {
  return a.dtype() == b.dtype() && at::equal(a.cpu(), b.cpu());
}

// What `work` throws; empty when nothing.
inline std::string refusal(const std::function<void()>& work) {
  try {
    work();
  } catch (const c10::Error& error) {
    return error.what_without_backtrace();
  }
  return "";
}

}  // namespace qalora::test
