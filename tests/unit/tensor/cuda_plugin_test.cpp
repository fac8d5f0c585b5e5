#include "qalora/tensor/cuda_plugin.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <string>

#include "qalora/core/error.h"
#include "qalora/tensor/dtype.h"
#include "support/support.h"

namespace qalora::tensor {
namespace {

namespace fs = std::filesystem;

fs::path fake(const char* which) {
  return fs::path(QALORA_FAKE_PLUGINS) / (std::string("libfake_plugin_") + which + ".so");
}

TEST(CudaPlugin, OpensOneThatFits) {
  const Plugin plugin = open_plugin(fake("one"), "fake");
  ASSERT_NE(plugin.accelerator, nullptr) << plugin.problem;
  EXPECT_EQ(plugin.accelerator->count(), 1);
  EXPECT_EQ(plugin.problem, "");
}

TEST(CudaPlugin, RefusesAnotherBuild) {
  const Plugin plugin = open_plugin(fake("one"), "of today");
  EXPECT_EQ(plugin.accelerator, nullptr);
  EXPECT_NE(plugin.problem.find("is of another build than the program"), std::string::npos) << plugin.problem;
}

TEST(CudaPlugin, NoDeviceIsItsSentence) {
  const Plugin plugin = open_plugin(fake("none"), "fake");
  EXPECT_EQ(plugin.accelerator, nullptr);
  EXPECT_EQ(plugin.problem, "the NVIDIA driver finds no device");
}

TEST(CudaPlugin, AnErrorInsideIsASentence) {
  const Plugin plugin = open_plugin(fake("upset"), "fake");
  EXPECT_EQ(plugin.accelerator, nullptr);
  EXPECT_NE(plugin.problem.find("the driver is upset"), std::string::npos) << plugin.problem;
}

TEST(CudaPlugin, FilesThatAreNoLibrary) {
  const test::TempDir folder;
  const fs::path text = folder / "libqalora_cuda.so";
  test::write_file(text, "not a library");
  const Plugin damaged = open_plugin(text, "fake"), missing = open_plugin(folder / "nothing.so", "fake");
  EXPECT_NE(damaged.problem.find("libqalora_cuda.so cannot be loaded"), std::string::npos) << damaged.problem;
  EXPECT_NE(missing.problem.find("nothing.so cannot be opened; build the program again"), std::string::npos)
      << missing.problem;
}

TEST(CudaPlugin, NamesTheMissingLibrary) {
  const std::string text = "libcublas.so.13: cannot open shared object file: No such file or directory";
  EXPECT_NE(loader_problem(text, "/x/libqalora_cuda.so").find("the library libcublas.so.13 is missing; QALORA_GPU=1"),
            std::string::npos);
  const std::string symbol =
      loader_problem("/x/libqalora_cuda.so: undefined symbol: _ZN2at4cuda", "/x/libqalora_cuda.so");
  EXPECT_NE(symbol.find("does not fit the libraries it finds (undefined symbol: _ZN2at4cuda)"), std::string::npos)
      << symbol;
}

TEST(CudaPlugin, LooksForADeviceNode) {
  const test::TempDir root;
  EXPECT_FALSE(nvidia_device_present(root.path()));
  fs::create_directories(root / "dev");
  test::write_file(root / "dev/nvidiactl", "");
  EXPECT_TRUE(nvidia_device_present(root.path()));
}

TEST(CudaPlugin, Architectures) {
  const std::vector<int> built = {80, 86, 90};
  const auto problem = [&](int device) {
    return architecture_problem({.name = "a card", .architecture = device}, built);
  };
  for (const int runs : {80, 86, 87, 89, 90, 100, 120}) EXPECT_EQ(problem(runs), "") << runs;
  EXPECT_EQ(problem(75), "a card has compute capability 7.5; the kernels need 8.0 (Ampere) or newer");
  const auto one = [](int device, int only) {
    return architecture_problem({.name = "a card", .architecture = device}, {only});
  };
  EXPECT_EQ(
      one(86, 90),
      "a card has compute capability 8.6, this build has kernels for 9.0; build again with -DQALORA_CUDA_ARCHITECTURES=86");
  EXPECT_NE(one(80, 86), "") << "machine code runs from its own minor version on";
  EXPECT_EQ(one(90, 86), "") << "the PTX of the newest one is compiled by the driver";
}

TEST(CudaPlugin, BuildSaysWhatItHas) {
  const CudaBuild& build = cuda_build();
  EXPECT_EQ(build.built, build.missing.empty());
  EXPECT_EQ(build.built, !build.toolkit.empty());
  EXPECT_GT(build.contract.size(), 16u);
}

TEST(CheckStatus, WhatTheDriverSaid) {
  EXPECT_NO_THROW(check_status(kernels::Status::kOk, "matvec"));
  EXPECT_THROW(check_status(kernels::Status::kUnsupported, "matvec"), InternalError);
  EXPECT_THROW(check_status(kernels::Status::kBadArgument, "matvec"), InternalError);
  EXPECT_THROW(check_status(kernels::Status::kDeviceError, "matvec"), DeviceError);
}

TEST(DeviceKernels, TheCpuHasNone) {
  EXPECT_EQ(device_kernels(c10::kCPU), nullptr);
  EXPECT_EQ(current_stream(c10::kCPU), nullptr);
  EXPECT_EQ(default_compute_dtype(c10::Device(c10::kCUDA, 0)), at::kBFloat16);
}

}  // namespace
}  // namespace qalora::tensor
