#include "qalora/tensor/cuda_plugin.h"

#include <dlfcn.h>

#include <algorithm>
#include <exception>

#include "qalora/core/error.h"

namespace qalora::tensor {

namespace fs = std::filesystem;

bool nvidia_device_present(const fs::path& root) {
  std::error_code error;
  const auto there = [&](const char* node) { return fs::exists(root / node, error); };
  return there("dev/nvidiactl") || there("proc/driver/nvidia/version") || there("dev/dxg");
}

std::string loader_problem(const std::string& text, const fs::path& plugin) {
  const size_t end = text.find(": cannot open shared object file");
  if (end != std::string::npos) {
    const std::string library = text.substr(0, end);
    if (library == plugin.string()) return message(library, " cannot be opened; build the program again");
    return message(
        "the library ", library,
        " is missing; QALORA_GPU=1 scripts/setup.sh installs what CUDA needs, or add its folder to LD_LIBRARY_PATH");
  }
  const size_t symbol = text.find("undefined symbol: ");
  if (symbol != std::string::npos) {
    return message(plugin.filename().string(), " does not fit the libraries it finds (", text.substr(symbol, 120),
                   "); build the program again");
  }
  return message(plugin.filename().string(), " cannot be loaded: ", text.substr(0, 200));
}

Plugin open_plugin(const fs::path& path, const std::string& contract) {
  // GLOBAL: LibTorch's CUDA libraries find each other's symbols that way, as they do in Python.
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_GLOBAL);
  if (library == nullptr) return {nullptr, loader_problem(dlerror(), path)};
  const auto own = reinterpret_cast<const char* (*)()>(dlsym(library, "qalora_cuda_contract"));
  const auto table = reinterpret_cast<const Accelerator* (*)()>(dlsym(library, "qalora_cuda_accelerator"));
  if (own == nullptr || table == nullptr || contract != own()) {
    return {nullptr, message(path.string(), " is of another build than the program; build both again")};
  }
  try {
    const Accelerator* accelerator = table();
    if (accelerator->count() > 0) return {accelerator, ""};
    return {nullptr, accelerator->problem()};
  } catch (const std::exception& error) {
    return {nullptr, message("the CUDA driver answers with an error: ", std::string(error.what()).substr(0, 200))};
  }
}

std::string architecture_problem(const AcceleratorProperties& properties, const std::vector<int>& architectures) {
  const int device = properties.architecture;
  constexpr int kOldest = 80;  // bf16 tensor cores, cp.async
  const auto name = [](int architecture) { return message(architecture / 10, ".", architecture % 10); };
  if (device < kOldest) {
    return message(properties.name, " has compute capability ", name(device),
                   "; the kernels need 8.0 (Ampere) or newer");
  }
  for (const int built : architectures) {
    if (built / 10 == device / 10 && built <= device) return "";
  }
  if (!architectures.empty() && *std::max_element(architectures.begin(), architectures.end()) < device) return "";
  std::string list;
  for (const int built : architectures) list += (list.empty() ? "" : ", ") + name(built);
  return message(properties.name, " has compute capability ", name(device), ", this build has kernels for ", list,
                 "; build again with -DQALORA_CUDA_ARCHITECTURES=", device);
}

}  // namespace qalora::tensor
