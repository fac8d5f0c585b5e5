// The CUDA C++ that the kernels here are written in: CUDA's own headers and the few PTX instructions that have no C++
// name. Compiled for the host, the same words come from the tests' shim, which runs a block's threads as fibers. A
// kernel may use nothing beyond this file: no static __shared__ arrays (dynamic_shared, so that the shim can fence it),
// no asm of its own.
#pragma once

#include <cstdint>
#include <type_traits>

#include "qalora/kernels/cuda.h"

#ifdef QALORA_CUDA_SHIM
#include "support/cuda_shim/cuda_shim.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#endif

namespace qalora::kernels::cuda {

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kWarp = 32;

struct LaunchShape {
  dim3 grid, block;
  int64_t shared_bytes = 0;
};

#ifdef __CUDACC__  // a host compiler sees shapes and types only: the tests that run on a device are compiled by it

// Dynamic shared memory, 16-byte aligned.
template <typename T>
__device__ __forceinline__ T* dynamic_shared() {
  extern __shared__ uint4 qalora_shared[];
  return reinterpret_cast<T*>(qalora_shared);
}

// 16 bytes from global to shared memory past the registers (sm_80), in the background until wait; zeros where !valid.
// Both aligned to 16.
__device__ __forceinline__ void cp_async16(void* shared, const void* global, bool valid = true) {
  const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(valid ? 16 : 0) : "memory");
}
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until at most `kPending` of this thread's newest groups are still under way. Others' copies need a barrier after it.
template <int kPending>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// Four 8x8 matrices of 16-bit elements from shared memory: lane l gives the address of row l % 8 of matrix l / 8 (16
// aligned bytes) and gets of matrix i, in r[i], elements (row l / 4, columns 2 (l % 4) and + 1). For kernels to come:
// those here need no shuffle of x.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void* shared) {
  const unsigned from = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(from)
               : "memory");
}

// 2^x good to 2^-22 of it and 1 / x to 1 ulp, in one instruction each: __expf and __fdividef spend three more on
// subnormal numbers, which these flush to 0.
__device__ __forceinline__ float exp2_approx(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}
__device__ __forceinline__ float reciprocal_approx(float x) {
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

// d += a . b, 16 x 8 x 16, fp32 sums. Element = __nv_bfloat16 or __half. With g = lane / 4 and t = lane % 4:
// a: [0] (row g, k 2t..2t+1), [1] (row g + 8, same k), [2] (row g, k 2t+8..2t+9), [3] (row g + 8, those)
// b: [0] (k 2t..2t+1, column g), [1] (k 2t+8..2t+9, column g);  d: [0] [1] (row g, columns 2t, 2t+1), [2] [3] (row g +
// 8)
template <typename Element>
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  if constexpr (sizeof(Element) == 2 && std::is_same_v<Element, __nv_bfloat16>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
}

void set_last_error(const char* text);

// Starts `kernel`. Its own error is returned, not what another library left behind; a fault of an earlier kernel may
// come out here too.
template <typename... Parameters>
Status launch(void (*kernel)(Parameters...), const LaunchShape& shape, Stream stream,
              std::type_identity_t<Parameters>... arguments) {
  cudaError_t error = cudaSuccess;
  if (shape.shared_bytes > 48 * 1024) {
    error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shape.shared_bytes));
  }
  if (error == cudaSuccess) {
    cudaLaunchConfig_t config = {};
    config.gridDim = shape.grid, config.blockDim = shape.block;
    config.dynamicSmemBytes = static_cast<size_t>(shape.shared_bytes),
    config.stream = static_cast<cudaStream_t>(stream);
    error = cudaLaunchKernelEx(&config, kernel, arguments...);
  }
  if (error == cudaSuccess) return Status::kOk;
  (void)cudaGetLastError();  // nor does another library find ours
  set_last_error(cudaGetErrorString(error));
  return Status::kDeviceError;
}

#endif

}  // namespace qalora::kernels::cuda

#ifdef QALORA_CUDA_SHIM
#include "support/cuda_shim/dialect_shim.h"
#endif
