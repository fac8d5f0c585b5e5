// Our kernels' table on the fake accelerator: device pointers only, alive, and part of recorded graphs.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <tuple>

#include "accelerator/support.h"
#include "qalora/tensor/accelerator.h"

namespace qalora::test {
namespace {

using at::Tensor;
using kernels::Status;
using kernels::cuda::Type;

class FakeKernels : public ::testing::Test {
 protected:
  void SetUp() override {
    use_fake_accelerator();
    if (tensor::accelerator()->kernels == nullptr) GTEST_SKIP() << "the kernels are not built for the host here";
  }
  // sums of groups of 32 of x: [rows, width] f32 into sums: [rows, width / 32]
  Status pool(const Tensor& x, const Tensor& sums) {
    const auto* kernels = tensor::accelerator()->kernels;
    return kernels->pool(x.data_ptr(), x.size(1), Type::kFloat, x.size(0), x.size(1),
                         {sums.data_ptr<float>(), 32, false}, nullptr);
  }
};

TEST_F(FakeKernels, TakeTheDevicesPointersOnly) {
  const Tensor x = at::arange(128, c10::kFloat).view({2, 64}), on_device = device(x), sums = device(at::zeros({2, 2}));
  reset_fake_statistics();
  EXPECT_EQ(pool(on_device, sums), Status::kOk);
  EXPECT_EQ(fake_statistics().kernels, 1u);
  EXPECT_TRUE(same_bits(sums, x.view({2, 2, 32}).sum(-1)));  // whole numbers below 2^24: exact in any order
  EXPECT_NE(refusal([&] { std::ignore = pool(x, sums); }).find("pool: the pointer"), std::string::npos);
  EXPECT_NE(refusal([&] {
              std::ignore = pool(on_device, at::zeros({2, 2}));
            }).find("is the host's"),
            std::string::npos);
  Tensor gone = device(x);
  float* dangling = gone.data_ptr<float>();
  gone = Tensor();
  const auto* kernels = tensor::accelerator()->kernels;
  EXPECT_NE(
      refusal([&] {
        std::ignore = kernels->pool(dangling, 64, Type::kFloat, 2, 64, {sums.data_ptr<float>(), 32, false}, nullptr);
      }).find("points to nothing that lives"),
      std::string::npos);
}

TEST_F(FakeKernels, AreRecorded) {
  const Tensor x = device(at::ones({2, 64})), sums = device(at::zeros({2, 2}));
  const auto graph = tensor::accelerator()->record(0, [&] {
    const Tensor scratch = x * 2;  // gone when the recording ends, but the graph's
    EXPECT_EQ(pool(scratch, sums), Status::kOk);
  });
  EXPECT_TRUE(same_bits(sums, at::zeros({2, 2})));
  x.fill_(3);
  graph->replay();
  EXPECT_TRUE(same_bits(sums, at::full({2, 2}, 192.f)));
}

}  // namespace
}  // namespace qalora::test
