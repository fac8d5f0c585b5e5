// Where and with how many threads to compute.
#pragma once

#include <c10/core/Device.h>

#include <cstdint>
#include <string_view>

namespace qalora::tensor {

// "cpu", "cuda", "cuda:N" or "" (the default: CUDA when this build and machine have it, else the CPU). "cuda" means the
// accelerator in use where one was brought by use_accelerator. UserError for anything else and for CUDA where there is
// none, with the reason.
c10::Device parse_device(std::string_view name);
void set_threads(int threads);  // 0: all cores
int threads();
uint64_t available_memory_bytes();  // MemAvailable, or the cgroup's limit when lower
uint64_t peak_memory_bytes();       // the process's largest resident size so far

}  // namespace qalora::tensor
