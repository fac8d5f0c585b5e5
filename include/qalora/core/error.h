// The errors that leave a library function. Text: what, expected, got, what to do; the path and the tensor's name
// first.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace qalora {

// What the process returns. Documented in README; scripts rely on the numbers.
enum class ExitCode : int {
  kOk = 0,
  kFailure = 1,
  kUsage = 2,  // a flag, a config key or a combination of them
  kData = 3,   // an input file is damaged or does not match
  kOutOfMemory = 4,
  kIo = 5,            // disk full, read-only, no such folder for an output
  kDiverged = 6,      // training produced non-finite losses
  kVerification = 7,  // a merge did not reproduce the adapter model
  kSignal = 128,      // + signal number, after a clean stop
};

class Error : public std::runtime_error {
 public:
  Error(ExitCode code, const std::string& what) : std::runtime_error(what), code_(code) {}
  ExitCode code() const { return code_; }

 private:
  ExitCode code_;
};

#define QALORA_ERROR_TYPE(Name, exit_code)                             \
  class Name : public Error {                                          \
   public:                                                             \
    explicit Name(const std::string& what) : Error(exit_code, what) {} \
  }

QALORA_ERROR_TYPE(UserError, ExitCode::kUsage);
QALORA_ERROR_TYPE(DataError, ExitCode::kData);
QALORA_ERROR_TYPE(MemoryError, ExitCode::kOutOfMemory);
QALORA_ERROR_TYPE(IoError, ExitCode::kIo);
QALORA_ERROR_TYPE(DivergedError, ExitCode::kDiverged);
QALORA_ERROR_TYPE(VerificationError, ExitCode::kVerification);
QALORA_ERROR_TYPE(DeviceError, ExitCode::kFailure);  // what a GPU or its driver said
QALORA_ERROR_TYPE(InternalError, ExitCode::kFailure);
#undef QALORA_ERROR_TYPE

// Thrown where a long loop notices that the person asked to stop; carries 128 + the signal's number.
class Interrupted : public Error {
 public:
  explicit Interrupted(int signal_number)
      : Error(static_cast<ExitCode>(static_cast<int>(ExitCode::kSignal) + signal_number), "stopped by a signal") {}
};

// Joins its arguments as a stream would: message("got ", 3, " of ", 4).
template <typename... Args>
std::string message(const Args&... args) {
  std::ostringstream out;
  (out << ... << args);
  return out.str();
}

}  // namespace qalora

// Throws `Type` with the joined message unless `condition` holds. One condition each, always on.
#define QALORA_REQUIRE(condition, Type, ...)                                \
  do {                                                                      \
    if (!(condition)) throw ::qalora::Type(::qalora::message(__VA_ARGS__)); \
  } while (false)

// For our own mistakes: what a caller inside the program got wrong.
#define QALORA_CHECK(condition, ...) \
  QALORA_REQUIRE(condition, InternalError, "internal error: " #condition " does not hold: ", __VA_ARGS__)
