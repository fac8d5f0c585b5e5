// What LibTorch's errors mean to the person.
#pragma once

#include <optional>
#include <string>

#include "qalora/core/error.h"

namespace qalora::cli {

struct Fault {
  std::string text;
  ExitCode code = ExitCode::kFailure;
};

// `what`: an error's text without its backtrace. Out of memory on the CPU or a device, or anything else that CUDA
// reports; nothing where the error is neither.
std::optional<Fault> known_fault(const std::string& what);

}  // namespace qalora::cli
