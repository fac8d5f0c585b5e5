// The table of functions, and what all of them ask of a weight.
#include <cstdint>

#include "kernels/cuda/elementwise.h"
#include "kernels/cuda/linear.h"

namespace qalora::kernels::cuda {

namespace {

thread_local const char* last_error_text = "";

const char* last_error() { return last_error_text; }

}  // namespace

void set_last_error(const char* text) { last_error_text = text; }  // cudaGetErrorString's texts are static

bool aligned(const void* pointer, int64_t bytes) {
  return pointer != nullptr && reinterpret_cast<uintptr_t>(pointer) % static_cast<uintptr_t>(bytes) == 0;
}

Status check(const TiledView& weight) {
  if (!supports(weight.shape)) return Status::kUnsupported;
  const bool good = aligned(weight.codes, 16) && aligned(weight.scales, 8) && aligned(weight.offsets, 8);
  return good ? Status::kOk : Status::kBadArgument;
}

const Api& api() {
  static const Api table = [] {
    Api api{};
    api.repack = repack;
    api.fold = fold;
    api.dequantize = dequantize;
    api.pool = pool;
    api.rms_norm = rms_norm;
    api.rms_norm_backward = rms_norm_backward;
    api.swiglu = swiglu;
    api.swiglu_backward = swiglu_backward;
    api.rope = rope;
    api.cross_entropy = cross_entropy;
    api.last_error = last_error;
    return api;
  }();
  return table;
}

}  // namespace qalora::kernels::cuda
