#include "qalora/cli/faults.h"

#include <regex>
#include <string_view>

namespace qalora::cli {

namespace {

constexpr const char* kLower =
    "lower micro_batch_size or sequence_length, turn gradient_checkpointing on, or take fewer bits";

bool contains(std::string_view text, std::string_view part) { return text.find(part) != std::string_view::npos; }

std::string first_line(const std::string& text) { return text.substr(0, text.find('\n')); }

// "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB of which 1.10 GiB is free.
// ..."
std::string device_memory_text(const std::string& what) {
  static const std::regex numbers(
      R"(Tried to allocate ([0-9.]+ \w+).*?capacity of ([0-9.]+ \w+) of which ([0-9.]+ \w+) is free)");
  std::smatch match;
  std::string sizes;
  if (std::regex_search(what, match, numbers)) {
    sizes = message(": asked for ", match[1].str(), ", ", match[3].str(), " of ", match[2].str(), " were free");
  } else {
    sizes = " (" + first_line(what) + ")";
  }
  return message("the GPU is out of memory", sizes, "; ", kLower, ", or use --device cpu");
}

// A kernel runs long after the call that started it, so its error comes out at some later call.
std::string device_error_text(const std::string& what) {
  return message("the GPU reports an error: ", first_line(what),
                 "; run again with -vv, which waits for each kernel and so stops at the one at fault");
}

}  // namespace

std::optional<Fault> known_fault(const std::string& what) {
  if (contains(what, "out of memory") || contains(what, "CUBLAS_STATUS_ALLOC_FAILED") ||
      contains(what, "CUDNN_STATUS_ALLOC_FAILED")) {
    return Fault{device_memory_text(what), ExitCode::kOutOfMemory};
  }
  if (contains(what, "can't allocate memory") || contains(what, "not enough memory")) {
    return Fault{message("out of memory (", first_line(what), "); lower micro_batch_size, sequence_length or rank"),
                 ExitCode::kOutOfMemory};
  }
  for (const char* part : {"CUDA error", "CUDA driver error", "CUBLAS_STATUS", "cuBLAS error", "CUSOLVER_STATUS",
                           "cuDNN error", "NCCL error"}) {
    if (contains(what, part)) return Fault{device_error_text(what), ExitCode::kFailure};
  }
  return std::nullopt;
}

}  // namespace qalora::cli
