// The table of functions, and what all of them ask of a weight.
#include <cstdint>

#include "kernels/cuda/elementwise.h"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/products.h"

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

Status check_product(const TiledView& weight, const void* x, int64_t x_stride, Type x_type, const float* sums,
                     int64_t rows, const void* y, int64_t y_stride, Type y_type) {
  const Status status = check(weight);
  if (status != Status::kOk) return status;
  if (x_type == Type::kFloat || rows > INT32_MAX) return Status::kUnsupported;
  if (rows <= 0) return rows == 0 ? Status::kOk : Status::kBadArgument;
  const bool strides =
      x_stride >= weight.shape.in_features && x_stride % 8 == 0 && y_stride >= weight.shape.out_features;
  const bool pointers = aligned(x, 16) && aligned(sums, 4) && aligned(y, bytes_of(y_type));
  return strides && pointers ? Status::kOk : Status::kBadArgument;
}

const Api& api() {
  static const Api table = [] {
    Api api{};
    api.repack = repack;
    api.fold = fold;
    api.dequantize = dequantize;
    api.matvec = matvec;
    api.matmul_workspace_bytes = matmul_workspace_bytes;
    api.matmul = matmul;
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
