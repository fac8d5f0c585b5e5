#include "qalora/tensor/accelerator.h"

#include <atomic>
#include <filesystem>
#include <mutex>
#include <string>

#include "qalora/core/error.h"
#include "qalora/tensor/cuda_plugin.h"

namespace qalora::tensor {

namespace {

namespace fs = std::filesystem;

std::atomic<const Accelerator*> in_use = nullptr;

constexpr const char* kLibrary = "libqalora_cuda.so";

// Beside the program, or in lib/ beside the folder bin/ that holds it; empty when in neither.
fs::path plugin_path() {
  std::error_code error;
  const fs::path folder = fs::read_symlink("/proc/self/exe", error).parent_path();
  for (const fs::path& path : {folder / kLibrary, folder.parent_path() / "lib" / kLibrary}) {
    if (fs::exists(path, error)) return path;
  }
  return {};
}

// Why none of the devices can be used, or "" when one can.
std::string first_problem(const Accelerator& accelerator, const CudaBuild& build) {
  std::string first;
  for (int index = 0; index < accelerator.count(); ++index) {
    const std::string problem = architecture_problem(accelerator.properties(index), build.architectures);
    if (problem.empty()) return "";
    if (first.empty()) first = problem;
  }
  return first;
}

// Cheap questions first: a machine without a device never opens LibTorch's CUDA libraries, half a gigabyte of them. To
// be called before LibTorch first asks itself about CUDA (a seed set, a tensor pinned): it remembers for good that
// there was none.
Plugin find_cuda() {
  const CudaBuild& build = cuda_build();
  if (!build.built) return {nullptr, message("this build has no CUDA (", build.missing, ")")};
  if (!nvidia_device_present()) return {nullptr, "there is no NVIDIA device on this machine"};
  const fs::path path = plugin_path();
  if (path.empty()) return {nullptr, message(kLibrary, " is missing beside the program; build it again")};
  Plugin plugin = open_plugin(path, build.contract);
  if (plugin.accelerator == nullptr) return plugin;
  std::string first;
  try {
    first = first_problem(*plugin.accelerator, build);
  } catch (const std::exception& error) {  // a device that does not answer
    first = message("the NVIDIA device does not answer (", std::string(error.what()).substr(0, 200), ")");
  }
  return first.empty() ? plugin : Plugin{nullptr, first};
}

}  // namespace

const Accelerator* accelerator() { return in_use.load(std::memory_order_acquire); }

void use_accelerator(const Accelerator& accelerator) { in_use.store(&accelerator, std::memory_order_release); }

const Accelerator* load_cuda(std::string* problem) {
  if (const Accelerator* given = accelerator()) return given;
  static const Plugin plugin = [] {
    Plugin found = find_cuda();
    if (found.accelerator != nullptr) use_accelerator(*found.accelerator);
    return found;
  }();
  if (problem != nullptr) *problem = plugin.problem;
  return plugin.accelerator;
}

const kernels::cuda::Api* device_kernels(c10::Device device) {
  const Accelerator* used = accelerator();
  return used != nullptr && device.type() == used->type ? used->kernels : nullptr;
}

kernels::cuda::Stream current_stream(c10::Device device) {
  const Accelerator* used = accelerator();
  const bool there = used != nullptr && device.type() == used->type && used->current_stream != nullptr;
  return there ? used->current_stream(device.has_index() ? device.index() : 0) : nullptr;
}

void check_status(kernels::Status status, const char* what) {
  if (status == kernels::Status::kOk) return;
  QALORA_CHECK(status != kernels::Status::kUnsupported, what, ": no kernel for this shape");
  QALORA_CHECK(status != kernels::Status::kBadArgument, what, ": a kernel refused its arguments");
  const Accelerator* used = accelerator();
  const char* text = used != nullptr && used->kernels != nullptr && used->kernels->last_error != nullptr
                         ? used->kernels->last_error()
                         : nullptr;
  const std::string said = text != nullptr && *text != '\0' ? text : "no further word from the driver";
  QALORA_REQUIRE(said.find("out of memory") == std::string::npos, MemoryError, what, ": the device is out of memory (",
                 said,
                 "); lower micro_batch_size or sequence_length, turn gradient_checkpointing on, or take fewer bits");
  throw DeviceError(
      message(what, ": the device reports: ", said, "; -vv waits for each kernel and so names the one at fault"));
}

}  // namespace qalora::tensor
