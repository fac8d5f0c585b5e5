#include "qalora/tensor/caching_allocator.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <thread>

namespace qalora::tensor {
namespace {

constexpr int64_t kMega = int64_t{1} << 20;

at::Tensor bytes(int64_t count) { return at::empty({count}, at::kByte); }

class CachingAllocatorTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() { use_caching_allocator(); }
};

TEST_F(CachingAllocatorTest, AFreedBlockServesTheNextTensorOfItsSizeAndNoOther) {
  const auto before = caching_allocator_statistics();
  at::Tensor first = bytes(5 * kMega);
  first.fill_(7);
  const void* place = first.data_ptr();
  EXPECT_EQ(caching_allocator_statistics().used_bytes, before.used_bytes + 5 * kMega);
  first = at::Tensor();
  EXPECT_EQ(caching_allocator_statistics().used_bytes, before.used_bytes);
  at::Tensor larger = bytes(9 * kMega);
  EXPECT_NE(larger.data_ptr(), place);
  at::Tensor second = bytes(5 * kMega);
  EXPECT_EQ(second.data_ptr(), place);
  EXPECT_EQ(caching_allocator_statistics().reused, before.reused + 1);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(second.data_ptr()) % 64, 0u);
}

TEST_F(CachingAllocatorTest, WhatWaitsIsBounded) {
  const uint64_t live = 400 * kMega;
  {
    std::vector<at::Tensor> tensors;
    for (int i = 0; i < 40; ++i) tensors.push_back(bytes(10 * kMega));
    EXPECT_GE(caching_allocator_statistics().used_bytes, live);
  }
  const auto after = caching_allocator_statistics();
  EXPECT_LT(after.used_bytes, live);
  EXPECT_LE(after.waiting_bytes,
            live / 4 + 64 * kMega + 64 * kMega);  // an earlier test may have used some more at once
  EXPECT_GT(after.waiting_bytes, 0u);
}

TEST_F(CachingAllocatorTest, SmallTensorsAreNotItsBusiness) {
  const auto before = caching_allocator_statistics();
  const at::Tensor small = bytes(kMega - 1);
  EXPECT_EQ(caching_allocator_statistics().used_bytes, before.used_bytes);
}

TEST_F(CachingAllocatorTest, ThreadsMayFreeWhatOthersAllocated) {
  const auto before = caching_allocator_statistics();
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([t] {
      for (int i = 1; i < 40; ++i) {
        at::Tensor x = bytes((i % 5 + 1) * kMega);
        x.fill_(t);
        std::thread([y = std::move(x), t] { EXPECT_EQ(y[kMega - 1].item<int>(), t); }).join();
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(caching_allocator_statistics().used_bytes, before.used_bytes);
}

TEST_F(CachingAllocatorTest, TooMuchIsAnErrorThatNamesTheAmount) {
  try {
    bytes(int64_t{1} << 52);
    FAIL() << "allocated four petabytes";
  } catch (const c10::Error& error) {
    EXPECT_NE(std::string(error.what()).find("can't allocate memory"), std::string::npos);
  }
}

}  // namespace
}  // namespace qalora::tensor
