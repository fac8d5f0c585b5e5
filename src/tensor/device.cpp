#include "qalora/tensor/device.h"

#include <ATen/Parallel.h>
#include <sys/resource.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <optional>
#include <string>
#include <thread>

#include "qalora/core/error.h"
#include "qalora/core/format.h"
#include "qalora/core/log.h"
#include "qalora/tensor/accelerator.h"
#include "qalora/tensor/cuda_plugin.h"

namespace qalora::tensor {

namespace {

namespace fs = std::filesystem;

// The number after `key` in a "key value" file such as /proc/meminfo; with an empty key the file's first word.
// Nothing when the file, the key or the number is not there ("max" is no number: no limit).
std::optional<uint64_t> number_in(const fs::path& path, const std::string& key = "") {
  std::ifstream file(path);
  uint64_t value = 0;
  if (key.empty()) return file >> value ? std::optional(value) : std::nullopt;
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with(key)) return std::strtoull(line.c_str() + key.size(), nullptr, 10);
  }
  return std::nullopt;
}

struct ControllerFiles {
  const char *limit, *usage, *reclaimable;
};

// What one control group leaves to us: its limit less what it holds, where page cache that can be dropped does not
// count.
std::optional<uint64_t> room_in_group(const fs::path& folder, const ControllerFiles& files) {
  const auto limit = number_in(folder / files.limit), used = number_in(folder / files.usage);
  if (!limit || !used) return std::nullopt;
  const uint64_t cache = std::min(*used, number_in(folder / "memory.stat", files.reclaimable).value_or(0));
  return *limit - std::min(*limit, *used - cache);
}

// The smallest room of our control group and of those above it.
std::optional<uint64_t> room_in_groups() {
  std::optional<uint64_t> least;
  std::ifstream membership("/proc/self/cgroup");
  for (std::string line; std::getline(membership, line);) {  // "0::/path" (version 2) or "7:memory:/path" (version 1)
    const auto fields = split(line, ':');
    if (fields.size() < 3) continue;
    const auto controllers = split(fields[1], ',');
    const bool second = fields[1].empty();
    if (!second && std::find(controllers.begin(), controllers.end(), "memory") == controllers.end()) continue;
    const fs::path root = second ? "/sys/fs/cgroup" : "/sys/fs/cgroup/memory";
    const ControllerFiles files =
        second ? ControllerFiles{"memory.max", "memory.current", "inactive_file "}
               : ControllerFiles{"memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file "};
    // Inside a container the path may be the host's and not exist here: the walk then ends at the container's own root.
    for (fs::path group = fields[2];; group = group.parent_path()) {
      const auto room = room_in_group(root / group.relative_path(), files);
      if (room) least = std::min(least.value_or(*room), *room);
      if (group == group.parent_path()) break;
    }
  }
  return least;
}

// A device that was brought by use_accelerator runs whatever its owner built.
std::string device_problem(const Accelerator& accelerator, int index) {
  if (accelerator.type != c10::DeviceType::CUDA) return "";
  return architecture_problem(accelerator.properties(index), cuda_build().architectures);
}

int first_usable(const Accelerator& accelerator) {
  for (int index = 0; index < accelerator.count(); ++index) {
    if (device_problem(accelerator, index).empty()) return index;
  }
  return 0;
}

c10::Device default_device() {
  std::string problem;
  const Accelerator* accelerator = load_cuda(&problem);
  if (accelerator != nullptr)
    return c10::Device(accelerator->type, static_cast<c10::DeviceIndex>(first_usable(*accelerator)));
  log::verbose(message("computing on the CPU: ", problem));
  return c10::Device(c10::DeviceType::CPU);
}

}  // namespace

c10::Device parse_device(std::string_view name) {
  if (name == "cpu") return c10::Device(c10::DeviceType::CPU);
  if (name.empty()) return default_device();
  const bool cuda = name == "cuda" || (name.starts_with("cuda:") && name.size() > 5 && name.size() < 9 &&
                                       name.find_first_not_of("0123456789", 5) == std::string_view::npos);
  QALORA_REQUIRE(cuda, UserError, "device '", name, "' is not known; expected cpu, cuda or cuda:N",
                 did_you_mean(name, {"cpu", "cuda"}));
  std::string problem;
  const Accelerator* accelerator = load_cuda(&problem);
  QALORA_REQUIRE(accelerator != nullptr, UserError, "device '", name, "': ", problem,
                 "; use --device cpu to go on without");
  const int index = name == "cuda" ? first_usable(*accelerator) : std::atoi(std::string(name.substr(5)).c_str());
  const int count = accelerator->count();
  QALORA_REQUIRE(
      index < count, UserError, "device '", name, "': this machine has ", count,
      count == 1 ? " device, cuda:0" : " devices, cuda:0 to cuda:", count == 1 ? "" : std::to_string(count - 1));
  const std::string unfit = device_problem(*accelerator, index);
  QALORA_REQUIRE(unfit.empty(), UserError, "device '", name, "': ", unfit);
  return c10::Device(accelerator->type, static_cast<c10::DeviceIndex>(index));
}

void set_threads(int threads) {
  QALORA_REQUIRE(threads >= 0 && threads <= 4096, UserError, "threads must be 0 (all cores) to 4096, got ", threads);
  // OpenMP's own variable, where somebody set it, is what "all" means.
  if (threads == 0 && std::getenv("OMP_NUM_THREADS") != nullptr) return;
  at::set_num_threads(threads > 0 ? threads : static_cast<int>(std::max(1u, std::thread::hardware_concurrency())));
}

int threads() { return at::get_num_threads(); }

uint64_t available_memory_bytes() {
  const uint64_t machine = number_in("/proc/meminfo", "MemAvailable:").value_or(0) * 1024;
  return std::min(machine, room_in_groups().value_or(machine));
}

uint64_t peak_memory_bytes() {
  struct rusage usage = {};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<uint64_t>(usage.ru_maxrss) * 1024;
}

}  // namespace qalora::tensor
