// The host's side of kernels/cuda/dialect.h, which includes this at its end.
#pragma once

#include <cmath>
#include <tuple>
#include <type_traits>

#include "engine.h"
#include "matrix.h"

namespace qalora::kernels::cuda {

template <typename T>
T* dynamic_shared() {
  return reinterpret_cast<T*>(cuda_shim::shared_memory());
}

inline void cp_async16(void* shared, const void* global, bool valid = true) {
  cuda_shim::check_shared("cp.async", shared, 16);
  if (valid) {
    if (reinterpret_cast<uintptr_t>(global) % 16)
      cuda_shim::fault("cp.async: the source %p is not aligned to 16 bytes", global);
    volatile uint32_t seen = static_cast<const volatile uint4*>(global)->x;  // for ASan, where the copy is asked for
    seen = static_cast<const volatile uint4*>(global)->w;
    static_cast<void>(seen);
  }
  cuda_shim::async_copy16(shared, global, valid);
}
inline void cp_async_commit() { cuda_shim::async_commit(); }
template <int kPending>
void cp_async_wait() {
  cuda_shim::async_wait(kPending);
}

inline float flushed(float x) { return std::abs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x; }
inline float exp2_approx(float x) { return flushed(std::exp2(flushed(x))); }
inline float reciprocal_approx(float x) { return flushed(1.0f / flushed(x)); }

inline void ldmatrix_x4(uint32_t (&r)[4], const void* shared) { cuda_shim::load_matrix_x4(r, shared); }

template <typename Element>
void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  static_assert(std::is_same_v<Element, __nv_bfloat16> || std::is_same_v<Element, __half>);
  constexpr bool kIsHalf = std::is_same_v<Element, __half>;
  cuda_shim::multiply_16x8x16(d, a, b, kIsHalf ? cuda_shim::Element16::kHalf : cuda_shim::Element16::kBFloat16);
}

void set_last_error(const char* text);

template <typename... Parameters>
Status launch(void (*kernel)(Parameters...), const LaunchShape& shape, Stream,
              std::type_identity_t<Parameters>... arguments) {
  struct Call {
    void (*kernel)(Parameters...);
    std::tuple<Parameters...> arguments;
  };
  const Call call{kernel, {arguments...}};
  const auto body = [](const void* context) {
    const auto& mine = *static_cast<const Call*>(context);
    std::apply(mine.kernel, mine.arguments);
  };
  cuda_shim::run_grid({reinterpret_cast<const void*>(kernel), shape.grid, shape.block, shape.shared_bytes}, body,
                      &call);
  return Status::kOk;
}

}  // namespace qalora::kernels::cuda
