// The plug-in on a real device: LibTorch's side of include/qalora/tensor/accelerator.h.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <stdexcept>
#include <string>

#include "qalora/cli/faults.h"
#include "qalora/tensor/accelerator.h"
#include "qalora/tensor/device.h"

namespace qalora::tensor {
namespace {

const c10::Device kDevice(c10::DeviceType::CUDA, 0);

class Plugin : public testing::Test {
 protected:
  void SetUp() override {
    std::string problem;
    cuda_ = load_cuda(&problem);
    if (cuda_ == nullptr) GTEST_SKIP() << "no GPU here: " << problem;
  }
  at::Tensor on_device(const at::Tensor& tensor) const { return tensor.to(kDevice); }
  const Accelerator* cuda_ = nullptr;
};

TEST_F(Plugin, NamesItsDevices) {
  EXPECT_GE(cuda_->count(), 1);
  EXPECT_EQ(cuda_->problem(), "");
  const AcceleratorProperties properties = cuda_->properties(0);
  EXPECT_GE(properties.architecture, 80);
  EXPECT_GT(properties.multiprocessors, 0);
  EXPECT_NE(properties.name, "");
  EXPECT_EQ(parse_device("cuda"), kDevice);
  EXPECT_NE(device_kernels(kDevice), nullptr);
}

TEST_F(Plugin, CopiesThereAndBack) {
  const at::Tensor values = at::arange(1000, at::kFloat);
  EXPECT_TRUE(at::equal(on_device(values).mul(2).cpu(), values.mul(2)));
  EXPECT_FALSE(at::equal(on_device(values).mul(2).cpu(), values));
}

TEST_F(Plugin, MemoryInTensorsAndMemoryThatIsCached) {
  constexpr int64_t kBytes = int64_t{256} << 20, kSlack = int64_t{64} << 20;
  cuda_->release_cached_memory();
  const AcceleratorMemory before = cuda_->memory(0);
  EXPECT_GT(before.free, 0u);
  EXPECT_LE(before.free, before.total);
  {
    const at::Tensor held = at::empty({kBytes}, at::TensorOptions().dtype(at::kByte).device(kDevice));
    const AcceleratorMemory during = cuda_->memory(0);
    EXPECT_LE(during.free, before.free - kBytes + kSlack);
    EXPECT_GE(during.peak, static_cast<uint64_t>(kBytes));
  }
  EXPECT_GE(cuda_->memory(0).free + kSlack, before.free) << "what LibTorch keeps for later is free";
}

TEST_F(Plugin, RecordsAndReplays) {
  const at::Tensor x = on_device(at::full({1000}, 1.0f)), y = at::zeros_like(x);
  const auto work = [&] { y.copy_(x * 3 + 1); };
  work();  // warm
  y.zero_();
  const auto graph = cuda_->record(0, work);
  x.fill_(2);
  EXPECT_EQ(y[0].item<float>(), 0) << "nothing runs before the replay";
  graph->replay();
  EXPECT_TRUE(at::equal(y.cpu(), at::full({1000}, 7.0f)));
}

TEST_F(Plugin, AnErrorWhileRecordingLeavesTheDeviceInOrder) {
  const at::Tensor x = on_device(at::ones({10}));
  EXPECT_THROW((void)cuda_->record(0, [] { throw std::runtime_error("stop"); }), std::runtime_error);
  EXPECT_EQ(x.sum().item<float>(), 10);
  EXPECT_NO_THROW(cuda_->synchronize(0));
}

TEST_F(Plugin, OutOfMemoryIsASentence) {
  std::string what;
  try {
    (void)at::empty({int64_t{1} << 46}, at::TensorOptions().dtype(at::kByte).device(kDevice));
  } catch (const c10::Error& error) {
    what = error.what_without_backtrace();
  }
  const auto fault = cli::known_fault(what);
  ASSERT_TRUE(fault.has_value()) << what;
  EXPECT_EQ(fault->code, ExitCode::kOutOfMemory);
  EXPECT_NE(fault->text.find("asked for 65536.00 GiB, "), std::string::npos) << fault->text;
  EXPECT_EQ(on_device(at::ones({10})).sum().item<float>(), 10) << "the device goes on";
}

// Recording is on another stream than the default one: a kernel of ours that went elsewhere would run at once.
TEST_F(Plugin, OurKernelsRunOnLibTorchsStream) {
  const kernels::cuda::Api& api = *device_kernels(kDevice);
  const at::Tensor x = on_device(at::arange(4 * 128, at::kFloat).reshape({4, 128}));
  const at::Tensor sums = at::zeros({4, 4}, x.options());
  const auto work = [&] {
    check_status(api.pool(x.data_ptr(), 128, kernels::cuda::Type::kFloat, 4, 128,
                          {.sums = sums.data_ptr<float>(), .group_size = 32}, current_stream(kDevice)),
                 "pool");
  };
  work();
  sums.zero_();
  const auto graph = cuda_->record(0, work);
  EXPECT_EQ(sums.abs().max().item<float>(), 0) << "nothing runs before the replay";
  graph->replay();
  EXPECT_TRUE(at::equal(sums.cpu(), x.cpu().reshape({4, 4, 32}).sum(-1)))
      << "whole numbers below 2^24: every order of the sum is exact";
}

}  // namespace
}  // namespace qalora::tensor
