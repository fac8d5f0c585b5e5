// A real device under the checks of tests/cuda: its memory, and kernels that have ended when they return.
#include "gpu/device.h"

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <string>

#include "cuda/support.h"

namespace qalora::test::cuda {

namespace {

void require(cudaError_t error, const char* what) {
  if (error != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

}  // namespace

void* allocate(int64_t bytes) {
  void* memory = nullptr;
  require(cudaMalloc(&memory, static_cast<size_t>(std::max<int64_t>(bytes, 1))), "cudaMalloc");
  require(cudaMemset(memory, 0xff, static_cast<size_t>(bytes)), "cudaMemset");
  return memory;
}
void release(void* memory) { (void)cudaFree(memory); }
void copy_in(void* to, const void* from, int64_t bytes) {
  require(cudaMemcpy(to, from, static_cast<size_t>(bytes), cudaMemcpyHostToDevice), "a copy to the device");
}
void copy_out(void* to, const void* from, int64_t bytes) {
  require(cudaMemcpy(to, from, static_cast<size_t>(bytes), cudaMemcpyDeviceToHost), "a copy from the device");
}

}  // namespace qalora::test::cuda

namespace qalora::kernels::cuda {

// The linker (--wrap) sends the tests' calls of api() here; the real one is beside it.
const Api& real_api() __asm__("__real__ZN6qalora7kernels4cuda3apiEv");
const Api& waiting_api() __asm__("__wrap__ZN6qalora7kernels4cuda3apiEv");

namespace {

template <auto kMember, typename... Arguments>
Status call_and_wait(Arguments... arguments) {
  const Status status = (real_api().*kMember)(arguments...);
  test::cuda::require(cudaDeviceSynchronize(), "a kernel ended with an error");
  return status;
}

template <auto kMember, typename... Arguments>
void wrap(Api& table, Status (*Api::*)(Arguments...)) {
  if (real_api().*kMember != nullptr) table.*kMember = call_and_wait<kMember, Arguments...>;
}

Api make_waiting_api() {
  Api table = real_api();
  wrap<&Api::repack>(table, &Api::repack);
  wrap<&Api::fold>(table, &Api::fold);
  wrap<&Api::dequantize>(table, &Api::dequantize);
  wrap<&Api::matvec>(table, &Api::matvec);
  wrap<&Api::matmul>(table, &Api::matmul);
  wrap<&Api::pool>(table, &Api::pool);
  wrap<&Api::rms_norm>(table, &Api::rms_norm);
  wrap<&Api::rms_norm_backward>(table, &Api::rms_norm_backward);
  wrap<&Api::swiglu>(table, &Api::swiglu);
  wrap<&Api::swiglu_backward>(table, &Api::swiglu_backward);
  wrap<&Api::rope>(table, &Api::rope);
  wrap<&Api::cross_entropy>(table, &Api::cross_entropy);
  return table;
}

}  // namespace

const Api& waiting_api() {
  static const Api table = make_waiting_api();
  return table;
}

}  // namespace qalora::kernels::cuda

namespace qalora::test::cuda {

namespace {

bool device_here() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess && count > 0;
}

TEST(Gpu, IsHere) {
  if (!device_here()) GTEST_SKIP() << "no GPU here: the kernels ran on the host's shim only";
}

}  // namespace

void filter_without_device() {
  if (!device_here()) GTEST_FLAG_SET(filter, "Gpu.IsHere");
}

}  // namespace qalora::test::cuda
