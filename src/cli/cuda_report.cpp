#include "cuda_report.h"

#include <nlohmann/json.hpp>
#include <vector>

#include "qalora/core/error.h"
#include "qalora/core/format.h"
#include "qalora/tensor/accelerator.h"
#include "qalora/tensor/cuda_plugin.h"

namespace qalora::cli {

namespace {

std::string capability(int architecture) { return message(architecture / 10, ".", architecture % 10); }

std::string capabilities(const std::vector<int>& architectures) {
  std::vector<std::string> names;
  for (const int architecture : architectures) names.push_back(capability(architecture));
  return join(names, ", ");
}

// "13.0" of "13.0, driver 13.0"
std::string driver_of(const std::string& version) {
  const std::string before = ", driver ";
  const size_t start = version.find(before);
  return start == std::string::npos ? version : version.substr(start + before.size());
}

}  // namespace

std::string cuda_line() {
  const tensor::CudaBuild& build = tensor::cuda_build();
  if (!build.built) return "CUDA not built: " + build.missing;
  std::string problem;
  const tensor::Accelerator* cuda = tensor::load_cuda(&problem);
  std::string line = message("CUDA ", build.toolkit, " for ", capabilities(build.architectures), "; ");
  if (cuda == nullptr) return line + problem;
  line += "driver " + driver_of(cuda->version);
  for (int index = 0; index < cuda->count(); ++index) {
    const tensor::AcceleratorProperties device = cuda->properties(index);
    line += message("; cuda:", index, " ", device.name, " (", capability(device.architecture), ", ",
                    format_bytes(cuda->memory(index).total), ")");
  }
  return line;
}

nlohmann::json cuda_json() {
  const tensor::CudaBuild& build = tensor::cuda_build();
  if (!build.built) return nullptr;
  nlohmann::json report = {{"toolkit", build.toolkit},
                           {"architectures", build.architectures},
                           {"driver", nullptr},
                           {"devices", nlohmann::json::array()},
                           {"problem", nullptr}};
  std::string problem;
  const tensor::Accelerator* cuda = tensor::load_cuda(&problem);
  if (cuda == nullptr) {
    report["problem"] = problem;
    return report;
  }
  report["driver"] = driver_of(cuda->version);
  for (int index = 0; index < cuda->count(); ++index) {
    const tensor::AcceleratorProperties device = cuda->properties(index);
    const tensor::AcceleratorMemory memory = cuda->memory(index);
    report["devices"].push_back({{"name", device.name},
                                 {"architecture", device.architecture},
                                 {"multiprocessors", device.multiprocessors},
                                 {"bytes", memory.total},
                                 {"free_bytes", memory.free}});
  }
  return report;
}

}  // namespace qalora::cli
