// Element types by their names on the command line and in files.
#pragma once

#include <c10/core/Device.h>
#include <c10/core/ScalarType.h>

#include <string>
#include <string_view>

namespace qalora::tensor {

// "float32" | "bfloat16" -> compute type. UserError with the nearest name otherwise.
at::ScalarType parse_compute_dtype(std::string_view name);
std::string dtype_name(at::ScalarType dtype);
// bfloat16 where the device multiplies it faster than float32: every accelerator we run on, processors with AMX. Else
// float32.
at::ScalarType default_compute_dtype(c10::Device device = c10::kCPU);

}  // namespace qalora::tensor
