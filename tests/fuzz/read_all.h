// Reads whatever a source of tensors offers, as a conversion would.
#pragma once

#include <ATen/core/Tensor.h>

#include "qalora/io/tensor_source.h"

namespace qalora::fuzz {

inline void read_all(const io::TensorSource& source) {
  for (const auto& [name, info] : source.tensors()) {
    const at::Tensor tensor = source.read(name);
    QALORA_CHECK(tensor.sizes() == at::IntArrayRef(info.shape) && tensor.is_contiguous(), "'", name,
                 "' is not what tensors() promised");
    QALORA_CHECK(tensor.nbytes() == info.bytes() && tensor.scalar_type() == io::scalar_type(info.dtype), "'", name,
                 "': its size or dtype");
    // Touches the last byte that the source gives.
    const io::TensorBytes bytes = source.bytes(name);
    volatile std::byte last = bytes.span.empty() ? std::byte{} : bytes.span.back();
    (void)last;
    source.release(name);
  }
}

}  // namespace qalora::fuzz
