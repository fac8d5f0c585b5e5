// The device beside the CPU, as a table: what LibTorch cannot be asked through a tensor. CUDA's comes from a plug-in
// library that is loaded when a command wants it, so that nothing else pays for it; the tests bring one of their own
// that lies in host memory.
#pragma once

#include <c10/core/Device.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "qalora/kernels/cuda.h"

namespace qalora::tensor {

struct AcceleratorProperties {
  std::string name;      // "NVIDIA H200"
  int architecture = 0;  // 10 * major + minor: 90
  int multiprocessors = 0;
};

struct AcceleratorMemory {       // bytes
  uint64_t total = 0, free = 0;  // of the device, whoever uses it; what LibTorch has cached counts as free
  uint64_t peak = 0;             // most that LibTorch's allocator held in tensors since the start
};

// A recorded sequence of kernels on fixed addresses; replay() runs it again on the current stream.
class RecordedGraph {
 public:
  virtual ~RecordedGraph() = default;
  virtual void replay() = 0;
};

struct Accelerator {
  c10::DeviceType type = c10::DeviceType::CUDA;
  const kernels::cuda::Api* kernels = nullptr;
  std::string version;                 // of the toolkit it was built with and of the driver: "13.0, driver 13.0"
  int (*count)() = nullptr;            // devices; 0 with a reason in problem()
  std::string (*problem)() = nullptr;  // why there is none, in one sentence
  AcceleratorProperties (*properties)(int index) = nullptr;
  AcceleratorMemory (*memory)(int index) = nullptr;
  kernels::cuda::Stream (*current_stream)(int index) = nullptr;
  void (*synchronize)(int index) = nullptr;  // throws what asynchronous work did wrong
  void (*release_cached_memory)() = nullptr;
  // Runs `work` once for recording; everything it touches must have been warmed up and stay where it is.
  std::unique_ptr<RecordedGraph> (*record)(int index, const std::function<void()>& work) = nullptr;
};

// The one in use; nullptr before load_cuda or use_accelerator.
const Accelerator* accelerator();
void use_accelerator(const Accelerator& accelerator);  // must live as long as the process

// Loads the plug-in beside the program (libqalora_cuda.so) once. nullptr and a sentence in *problem when it was not
// built, its libraries are missing, or there is no device that it can use.
const Accelerator* load_cuda(std::string* problem);

// The kernels that run on `device`'s tensors, or nullptr for the CPU.
const kernels::cuda::Api* device_kernels(c10::Device device);
kernels::cuda::Stream current_stream(c10::Device device);
// Throws DeviceError... for a Status that is not kOk, with what the driver said.
void check_status(kernels::Status status, const char* what);

}  // namespace qalora::tensor
