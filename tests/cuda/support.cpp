#include "cuda/support.h"

#include <gtest/gtest-spi.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "cuda/mutant.h"
#include "support/cuda_shim/half.h"
#ifdef QALORA_CUDA_SHIM
#include "support/cuda_shim/settings.h"
#else
#include "gpu/device.h"
#endif

namespace qalora::test::cuda {
namespace {

struct Check {
  std::string suite, name;
  CheckFunction function;
  const char* file;
  int line;
};

std::vector<Check>& checks() {
  static std::vector<Check> all;
  return all;
}
std::vector<Mutant>& mutants() {
  static std::vector<Mutant> all;
  return all;
}

// The kernels as they are: every order passes with the same bits.
class RealKernels : public testing::Test {
 public:
  explicit RealKernels(CheckFunction function) : function_(function) {}
  void TestBody() override {
    Results first;
    cuda_shim::for_each_order([&](cuda_shim::Order order) {
      SCOPED_TRACE(std::string("threads run in order: ") + cuda_shim::name_of(order));
      if (HasFatalFailure()) return;
      Results now;
      function_(kernels::cuda::api(), now);
      if (order == cuda_shim::kOrders[0]) first = now;
      else EXPECT_TRUE(now == first) << "other bits than in ascending order: a race";
    });
  }

 private:
  CheckFunction function_;
};

// Ends a check at its first failed expectation, which is not counted as this test's own.
struct Caught {
  std::string how;
};
class Catcher : public testing::ScopedFakeTestPartResultReporter {
 public:
  Catcher() : ScopedFakeTestPartResultReporter(INTERCEPT_ONLY_CURRENT_THREAD, &unused_) {}
  void ReportTestPartResult(const testing::TestPartResult& result) override {
    if (result.failed()) throw Caught{result.message()};
  }

 private:
  testing::TestPartResultArray unused_;
};

// How `check` notices that `api` is broken, or "".
std::string notice(const Check& check, const Api& api) {
  Results first;
  std::string how;
  cuda_shim::for_each_order([&](cuda_shim::Order order) {
    if (!how.empty()) return;
    Results now;
    try {
      const Catcher catcher;
      check.function(api, now);
    } catch (const Caught& caught) {
      how = caught.how;
    } catch (const cuda_shim::Fault& fault) {
      how = fault.what();
    }
    if (order == cuda_shim::kOrders[0]) first = now;
    else if (how.empty() && !(now == first)) how = "other bits than in ascending order";
  });
  return how;
}

// How a process of its own ended that ran broken kernels, which may write anywhere.
struct Ending {
  enum Code { kNoticed = 10, kNotNoticed = 11, kNoSuchCheck = 12 };  // else it died
  int code;
  std::string text;  // what it said, a sanitizer's report included
};

template <typename Function>
Ending run_apart(Function function) {
  int ends[2];
  if (pipe(ends) != 0) throw std::runtime_error("no pipe");
  const pid_t child = fork();
  if (child == 0) {
    dup2(ends[1], STDOUT_FILENO);
    dup2(ends[1], STDERR_FILENO);
    close(ends[0]);
    const Ending::Code code = function();
    fflush(nullptr);
    _exit(code);
  }
  close(ends[1]);
  Ending ending{-1, ""};
  char piece[4096];
  for (ssize_t count; (count = read(ends[0], piece, sizeof(piece))) > 0;)
    ending.text.append(piece, static_cast<size_t>(count));
  close(ends[0]);
  int status = 0;
  waitpid(child, &status, 0);
  if (WIFEXITED(status)) ending.code = WEXITSTATUS(status);
  return ending;
}

class BrokenKernels : public testing::Test {
 public:
  explicit BrokenKernels(const Mutant& mutant) : mutant_(mutant) {}
  void TestBody() override {
    const Ending ending = run_apart([this] { return run_checks(); });
    ASSERT_NE(ending.code, Ending::kNoSuchCheck) << "there is no check " << mutant_.check;
    if (mutant_.id == std::string("unmutated")) {
      EXPECT_EQ(ending.code, Ending::kNotNoticed) << "a faithful copy was taken for broken: " << ending.text;
      return;
    }
    EXPECT_NE(ending.code, Ending::kNotNoticed) << "no check noticed that these kernels are broken";
    if (mutant_.dies) {
      const bool seen = ending.text.find("AddressSanitizer") != std::string::npos ||
                        ending.text.find("runtime error") != std::string::npos;
      EXPECT_TRUE(seen) << "no sanitizer reported it, but: " << ending.text;
    } else {
      EXPECT_EQ(ending.code, Ending::kNoticed) << "it died, which proves nothing: " << ending.text;
    }
    RecordProperty("noticed", ending.code == Ending::kNoticed ? ending.text.substr(0, 300) : "died");
  }

 private:
  Ending::Code run_checks() const {
    Api api = kernels::cuda::api();
    mutant_.apply(api);
    bool found = false;
    for (const Check& check : checks()) {
      if (mutant_.check[0] != '\0' && check.name != mutant_.check) continue;
      found = true;
      const std::string how = notice(check, api);
      if (how.empty()) continue;
      printf("%s: %s", check.name.c_str(), how.c_str());
      return Ending::kNoticed;
    }
    return found ? Ending::kNotNoticed : Ending::kNoSuchCheck;
  }
  Mutant mutant_;
};

void register_tests() {
  for (const Check& check : checks()) {
    testing::RegisterTest(check.suite.c_str(), check.name.c_str(), nullptr, nullptr, check.file, check.line,
                          [function = check.function]() -> testing::Test* { return new RealKernels(function); });
  }
  for (const Mutant& mutant : mutants()) {
    testing::RegisterTest("mutant", mutant.id, nullptr, nullptr, __FILE__, __LINE__,
                          [mutant]() -> testing::Test* { return new BrokenKernels(mutant); });
  }
}

}  // namespace

bool add_check(const char* suite, const char* name, CheckFunction function, const char* file, int line) {
  checks().push_back({suite, name, function, file, line});
  return true;
}
void add_mutant(const Mutant& mutant) { mutants().push_back(mutant); }

// ---- Memory: the shim's device is the host; a real one's is in gpu/device.cpp
// -----------------------------------------------------------
#ifdef QALORA_CUDA_SHIM

void* allocate(int64_t bytes) {
  void* memory = nullptr;
  if (posix_memalign(&memory, 256, static_cast<size_t>(bytes)) != 0) throw std::bad_alloc();
  memset(memory, 0xff, static_cast<size_t>(bytes));
  return memory;
}
void release(void* memory) { free(memory); }
void copy_in(void* to, const void* from, int64_t bytes) {
  if (bytes > 0) memcpy(to, from, static_cast<size_t>(bytes));
}
void copy_out(void* to, const void* from, int64_t bytes) { copy_in(to, from, bytes); }
#endif

// ---- Numbers
// ----------------------------------------------------------------------------------------------------------------------

float to_float(uint16_t bits, Type type) {
  return type == Type::kHalf ? cuda_shim::half_to_float(bits) : cuda_shim::bfloat16_to_float(bits);
}
uint16_t to_bits(float value, Type type) {
  return type == Type::kHalf ? cuda_shim::float_to_half(value) : cuda_shim::float_to_bfloat16(value);
}

std::vector<unsigned char> encode(const std::vector<float>& values, Type type) {
  const auto size = static_cast<size_t>(kernels::cuda::bytes_of(type));
  std::vector<unsigned char> memory(values.size() * size);
  for (size_t i = 0; i < values.size(); ++i) {
    const uint16_t bits = type == Type::kFloat ? uint16_t{0} : to_bits(values[i], type);
    if (type == Type::kFloat) memcpy(&memory[i * size], &values[i], size);
    else memcpy(&memory[i * size], &bits, size);
  }
  return memory;
}

std::vector<float> decode(const std::vector<unsigned char>& memory, Type type) {
  const auto size = static_cast<size_t>(kernels::cuda::bytes_of(type));
  std::vector<float> values(memory.size() / size);
  for (size_t i = 0; i < values.size(); ++i) {
    uint16_t bits = 0;
    if (type == Type::kFloat) memcpy(&values[i], &memory[i * size], size);
    else memcpy(&bits, &memory[i * size], size), values[i] = to_float(bits, type);
  }
  return values;
}

double unit_roundoff(Type type) { return type == Type::kFloat ? 0x1p-24 : type == Type::kHalf ? 0x1p-11 : 0x1p-8; }
const char* name_of(Type type) { return type == Type::kFloat ? "float" : type == Type::kHalf ? "half" : "bfloat16"; }

uint32_t Generator::next() {
  state_ ^= state_ >> 12;
  state_ ^= state_ << 25;
  state_ ^= state_ >> 27;
  return static_cast<uint32_t>(state_ * 0x2545f4914f6cdd1du >> 32);
}

std::vector<float> Generator::uniforms(int64_t count, float low, float high) {
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = uniform(low, high);
  return values;
}

void expect_close(const std::vector<float>& actual, const std::vector<double>& expected,
                  const std::vector<double>& tolerance, const std::string& what) {
  ASSERT_EQ(actual.size(), expected.size()) << what;
  ASSERT_EQ(tolerance.size(), expected.size()) << what;
  int64_t wrong = 0;
  size_t first = 0, worst = 0;
  double excess = -1;
  for (size_t i = 0; i < actual.size(); ++i) {
    const double error = std::abs(actual[i] - expected[i]);
    if (error <= tolerance[i]) continue;
    if (wrong++ == 0) first = i;
    const double times = std::isnan(error) ? INFINITY : error / tolerance[i];
    if (times > excess) excess = times, worst = i;
  }
  EXPECT_EQ(wrong, 0) << what << ": of " << actual.size() << " elements, the first is " << first << ", the worst "
                      << worst << ": " << actual[worst] << ", not " << expected[worst] << " within "
                      << tolerance[worst];
}

void expect_close(const std::vector<float>& actual, const std::vector<double>& expected, double tolerance,
                  const std::string& what) {
  expect_close(actual, expected, std::vector<double>(expected.size(), tolerance), what);
}

}  // namespace qalora::test::cuda

extern "C" {
// Leak detection needs ptrace, which containers forbid; redzones are wide enough for a stray row; memory of ended
// blocks need not stay poisoned for long.
const char* __asan_default_options() {
  return "detect_leaks=0:redzone=128:quarantine_size_mb=32:detect_odr_violation=0";
}
const char* __ubsan_default_options() { return "print_stacktrace=1"; }
}

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  qalora::test::cuda::register_tests();
#ifndef QALORA_CUDA_SHIM
  qalora::test::cuda::filter_without_device();
#endif
  return RUN_ALL_TESTS();
}
