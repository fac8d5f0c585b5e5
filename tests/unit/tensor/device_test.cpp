#include "qalora/tensor/device.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

#include "qalora/core/error.h"
#include "qalora/tensor/accelerator.h"
#include "qalora/tensor/cuda_plugin.h"

namespace qalora::tensor {
namespace {

std::string refusal(const std::string& name) {
  try {
    parse_device(name);
  } catch (const UserError& error) {
    return error.what();
  }
  ADD_FAILURE() << "'" << name << "' was taken";
  return "";
}

TEST(Device, Parse) {
  EXPECT_TRUE(parse_device("cpu").is_cpu());
  for (const char* name : {"gpu", "CPU", "cuda:", "cuda:x", "cuda:-1", "cuda:1234567890123", "cpu:0", " "}) {
    EXPECT_NE(refusal(name).find(message("'", name, "' is not known; expected cpu, cuda or cuda:N")), std::string::npos)
        << refusal(name);
  }
  EXPECT_NE(refusal("cdua").find("did you mean 'cuda'"), std::string::npos);
}

TEST(Device, WithoutCuda) {
  std::string problem;
  if (load_cuda(&problem) != nullptr) GTEST_SKIP() << "this machine has a GPU that the program can use";
  EXPECT_TRUE(parse_device("").is_cpu());
  EXPECT_NE(problem, "");
  for (const char* name : {"cuda", "cuda:0", "cuda:12"}) {
    EXPECT_EQ(refusal(name), message("device '", name, "': ", problem, "; use --device cpu to go on without"));
  }
  if (!cuda_build().built) {
    EXPECT_NE(problem.find("this build has no CUDA ("), std::string::npos) << problem;
  } else if (!nvidia_device_present()) {
    EXPECT_EQ(problem, "there is no NVIDIA device on this machine");
  }
}

TEST(Device, Threads) {
  const int before = threads();
  set_threads(1);
  EXPECT_EQ(threads(), 1);
  set_threads(3);
  EXPECT_EQ(threads(), 3);
  if (std::getenv("OMP_NUM_THREADS") == nullptr) {
    set_threads(0);
    EXPECT_EQ(threads(), static_cast<int>(std::thread::hardware_concurrency()));
  }
  set_threads(before);
  EXPECT_THROW(set_threads(-1), UserError);
  EXPECT_THROW(set_threads(1 << 20), UserError);
}

TEST(Device, Memory) {
  const uint64_t available = available_memory_bytes();
  EXPECT_GT(available, uint64_t{1} << 20);
  EXPECT_LT(available, uint64_t{1} << 50);
  const uint64_t before = peak_memory_bytes();
  EXPECT_GT(before, uint64_t{1} << 20);
  constexpr size_t kSize = size_t{64} << 20;
  { std::vector<char> touched(before + kSize, 1); }
  EXPECT_GE(peak_memory_bytes(), before + kSize) << "the peak stays after the memory was given back";
}

}  // namespace
}  // namespace qalora::tensor
