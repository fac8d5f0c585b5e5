// The CUDA half of the program, as the table of include/qalora/tensor/accelerator.h. Knows LibTorch's CUDA side and our
// kernels, and no room above; nothing here throws anything but LibTorch's own errors.
#include <ATen/Context.h>
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>

#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "qalora/tensor/accelerator.h"

namespace qalora::cuda {

namespace {

using tensor::Accelerator;
using tensor::AcceleratorMemory;
using tensor::AcceleratorProperties;
using tensor::RecordedGraph;

c10::DeviceIndex device_index(int index) { return static_cast<c10::DeviceIndex>(index); }

std::string version_text(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

// 0 where no driver is installed.
int driver_version() {
  int version = 0;
  return cudaDriverGetVersion(&version) == cudaSuccess ? version : 0;
}

std::string version() {
  const int driver = driver_version();
  return version_text(CUDART_VERSION) + ", driver " + (driver > 0 ? version_text(driver) : "none");
}

struct Devices {
  int count = 0;
  std::string problem;
};

Devices look_for_devices() {
  Devices found;
  const cudaError_t error = cudaGetDeviceCount(&found.count);
  if (error == cudaSuccess && found.count > 0) return found;
  found.count = 0;
  (void)cudaGetLastError();  // it would come out of the next call of somebody else
  const char* visible = std::getenv("CUDA_VISIBLE_DEVICES");
  const int driver = driver_version();
  if (driver == 0) {
    found.problem =
        "the NVIDIA driver's library libcuda.so.1 is missing or does not answer; install a driver for CUDA " +
        version_text(CUDART_VERSION) + " or newer";
  } else if (error == cudaErrorInsufficientDriver) {
    found.problem = "the NVIDIA driver is for CUDA " + version_text(driver) + " and older than this build's CUDA " +
                    version_text(CUDART_VERSION) + "; update the driver";
  } else if ((error == cudaErrorNoDevice || error == cudaSuccess) && visible != nullptr) {
    found.problem = "no NVIDIA device is visible: CUDA_VISIBLE_DEVICES is '" + std::string(visible) + "'";
  } else if (error == cudaErrorNoDevice || error == cudaSuccess) {
    found.problem = "the NVIDIA driver finds no device; does nvidia-smi list one?";
  } else {
    found.problem =
        std::string("the NVIDIA driver does not start (") + cudaGetErrorString(error) + "); does nvidia-smi work?";
  }
  return found;
}

const Devices& devices() {
  static const Devices found = look_for_devices();
  return found;
}

int count() { return devices().count; }
std::string problem() { return devices().problem; }

// LibTorch sets its CUDA state up on first use; its allocator and streams may not be asked before.
void start() {
  at::globalContext().lazyInitDevice(c10::DeviceType::CUDA);
  // cuDNN's attention plans anew for each shape, forward and backward, and batches differ in theirs.
  at::globalContext().setSDPUseCuDNN(false);
}

AcceleratorProperties read_properties(int index) {
  cudaDeviceProp read = {};
  C10_CUDA_CHECK(cudaGetDeviceProperties(&read, index));
  return {.name = read.name, .architecture = 10 * read.major + read.minor, .multiprocessors = read.multiProcessorCount};
}

// Asked for at every product of a few rows; the driver takes its time.
AcceleratorProperties properties(int index) {
  static const std::vector<AcceleratorProperties> all = [] {
    std::vector<AcceleratorProperties> found;
    for (int i = 0; i < count(); ++i) found.push_back(read_properties(i));
    return found;
  }();
  return all.at(static_cast<size_t>(index));
}

AcceleratorMemory memory(int index) {
  start();
  const c10::cuda::CUDAGuard guard(device_index(index));
  size_t free = 0, total = 0;
  C10_CUDA_CHECK(cudaMemGetInfo(&free, &total));
  const auto statistics = c10::cuda::CUDACachingAllocator::getDeviceStats(device_index(index));
  constexpr size_t kAll = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
  const int64_t cached = statistics.reserved_bytes[kAll].current - statistics.allocated_bytes[kAll].current;
  return {.total = total,
          .free = free + static_cast<uint64_t>(cached > 0 ? cached : 0),
          .peak = static_cast<uint64_t>(statistics.allocated_bytes[kAll].peak)};
}

kernels::cuda::Stream current_stream(int index) {
  return c10::cuda::getCurrentCUDAStream(device_index(index)).stream();
}

void synchronize(int index) {
  const c10::cuda::CUDAGuard guard(device_index(index));
  c10::cuda::device_synchronize();
}

void release_cached_memory() {
  start();
  c10::cuda::CUDACachingAllocator::emptyCache();
}

class Graph : public RecordedGraph {
 public:
  Graph(int index, const std::function<void()>& work) : index_(device_index(index)) {
    const c10::cuda::CUDAGuard device(index_);
    // Recording must not be on the default stream, and nothing that is still under way may fall into it.
    c10::cuda::device_synchronize();
    const c10::cuda::CUDAStreamGuard side(c10::cuda::getStreamFromPool(/*isHighPriority=*/false, index_));
    graph_.capture_begin();
    try {
      work();
    } catch (...) {
      end_quietly();
      throw;
    }
    graph_.capture_end();
  }

  void replay() override {
    const c10::cuda::CUDAGuard device(index_);
    graph_.replay();
  }

 private:
  // After an error in `work`, which is the one to report: recording may have been broken off already.
  void end_quietly() {
    try {
      graph_.capture_end();
    } catch (const c10::Error&) {
      (void)cudaGetLastError();
    }
  }

  c10::DeviceIndex index_;
  at::cuda::CUDAGraph graph_;
};

std::unique_ptr<RecordedGraph> record(int index, const std::function<void()>& work) {
  start();
  return std::make_unique<Graph>(index, work);
}

}  // namespace

}  // namespace qalora::cuda

extern "C" {

__attribute__((visibility("default"))) const char* qalora_cuda_contract() { return QALORA_CUDA_CONTRACT; }

__attribute__((visibility("default"))) const qalora::tensor::Accelerator* qalora_cuda_accelerator() {
  using namespace qalora::cuda;
  static const Accelerator table = {.type = c10::DeviceType::CUDA,
                                    .kernels = &qalora::kernels::cuda::api(),
                                    .version = version(),
                                    .count = count,
                                    .problem = problem,
                                    .properties = properties,
                                    .memory = memory,
                                    .current_stream = current_stream,
                                    .synchronize = synchronize,
                                    .release_cached_memory = release_cached_memory,
                                    .record = record};
  return &table;
}

}  // extern "C"
