// How this program's CUDA half was built, where it lies and whether this machine can use it.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "qalora/tensor/accelerator.h"

namespace qalora::tensor {

// What the build knew. `contract` names the layout of the structures that program and plug-in share (accelerator.h,
// cuda.h, LibTorch): a plug-in with another one is refused, since its calls would go astray.
struct CudaBuild {
  bool built = false;
  std::string missing;  // why it was not built, in a few words
  std::string toolkit;  // "13.0.88"
  std::vector<int>
      architectures;  // {80, 86, 89, 90}: kernels in machine code; for devices newer than the last there is PTX
  std::string contract;
};
const CudaBuild& cuda_build();

// The node that every road to an NVIDIA device passes, native or under WSL. `root`: "/" but for tests.
bool nvidia_device_present(const std::filesystem::path& root = "/");

struct Plugin {
  const Accelerator* accelerator = nullptr;
  std::string problem;  // a sentence when there is none
};
// Opens the library at `path` and asks it for its device table; it stays loaded. Throws nothing.
Plugin open_plugin(const std::filesystem::path& path, const std::string& contract);

// dlopen's words made short: which library is missing, and how to get it.
std::string loader_problem(const std::string& text, const std::filesystem::path& plugin);

// Why kernels built for `architectures` do not run on this device, or "": machine code runs on its own major version
// from its minor on, the PTX of the last one on anything newer.
std::string architecture_problem(const AcceleratorProperties& properties, const std::vector<int>& architectures);

}  // namespace qalora::tensor
