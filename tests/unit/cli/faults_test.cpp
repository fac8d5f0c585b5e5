#include "qalora/cli/faults.h"

#include <gtest/gtest.h>

namespace qalora::cli {
namespace {

TEST(Faults, OutOfMemoryOnTheDevice) {
  const auto fault = known_fault(
      "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB of which 1.10 GiB is free. Process 7 has "
      "78.00 GiB memory in use. Of the allocated memory 76.00 GiB is allocated by PyTorch, and 1.00 GiB is reserved");
  ASSERT_TRUE(fault.has_value());
  EXPECT_EQ(fault->code, ExitCode::kOutOfMemory);
  EXPECT_EQ(fault->text,
            "the GPU is out of memory: asked for 2.00 GiB, 1.10 GiB of 79.11 GiB were free; lower micro_batch_size or "
            "sequence_length, turn gradient_checkpointing on, or take fewer bits, or use --device cpu");
}

TEST(Faults, OutOfMemoryWithoutSizes) {
  for (const char* what : {"CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
                           "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"}) {
    const auto fault = known_fault(what);
    ASSERT_TRUE(fault.has_value()) << what;
    EXPECT_EQ(fault->code, ExitCode::kOutOfMemory) << what;
    EXPECT_EQ(fault->text.find('\n'), std::string::npos) << fault->text;
  }
  const auto cpu = known_fault(
      "[enforce fail at alloc_cpu.cpp:119] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes");
  ASSERT_TRUE(cpu.has_value());
  EXPECT_EQ(cpu->code, ExitCode::kOutOfMemory);
  EXPECT_EQ(cpu->text.find("GPU"), std::string::npos) << cpu->text;
}

TEST(Faults, OtherErrorsOfTheDevice) {
  const auto fault = known_fault(
      "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be asynchronously reported at some other API call");
  ASSERT_TRUE(fault.has_value());
  EXPECT_EQ(fault->code, ExitCode::kFailure);
  EXPECT_NE(fault->text.find("an illegal memory access was encountered; run again with -vv"), std::string::npos)
      << fault->text;
  EXPECT_EQ(fault->text.find('\n'), std::string::npos) << fault->text;
}

TEST(Faults, OurOwnMistakesAreNotTheirs) {
  EXPECT_FALSE(known_fault("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)").has_value());
  EXPECT_FALSE(
      known_fault("Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!")
          .has_value());
}

}  // namespace
}  // namespace qalora::cli
