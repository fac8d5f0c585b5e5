// One linear layer: dense or packed, bias and adapter, in the dtype of its inputs.
#include "qalora/model/linear.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

#include "qalora/quant/round_to_nearest.h"
#include "qalora/tensor/random.h"

namespace qalora::model {
namespace {

constexpr int64_t kTokens = 6, kIn = 96, kOut = 10, kGroup = 32, kGroups = 3, kRank = 2;

at::Tensor random(const char* name, at::IntArrayRef shape) {
  return tensor::RandomStream(9, name).normal_tensor(shape, 1.0);
}

Linear packed_linear() { return Linear("m", quant::round_to_nearest("w", random("w", {kOut, kIn}), 4, kGroup).weight); }

std::shared_ptr<Adapter> adapter(io::Pooling pooling) {
  auto result = std::make_shared<Adapter>();
  result->a = random("a", {kRank, pooling == io::Pooling::kNone ? kIn : kGroups});
  result->b = random("b", {kOut, kRank});
  result->scaling = 0.5;
  result->pooling = pooling;
  result->group_size = kGroup;
  return result;
}

double distance(const at::Tensor& ours, const at::Tensor& expected) {
  return (ours.to(at::kDouble) - expected).abs().max().item<double>() / expected.abs().max().item<double>();
}

// y = x . W^T + bias + scaling * pool(x) . A^T . B^T in double.
at::Tensor expected(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, const Adapter* adapter) {
  const at::Tensor inputs = x.to(at::kDouble);
  at::Tensor y = inputs.matmul(weight.to(at::kDouble).t());
  if (bias.defined()) y = y + bias.to(at::kDouble);
  if (adapter == nullptr) return y;
  const at::Tensor groups = inputs.view({kTokens, kGroups, kGroup});
  at::Tensor pooled = inputs;
  if (adapter->pooling != io::Pooling::kNone)
    pooled = adapter->pooling == io::Pooling::kSum ? groups.sum(-1) : groups.mean(-1);
  return y + adapter->scaling * pooled.matmul(adapter->a.to(at::kDouble).t()).matmul(adapter->b.to(at::kDouble).t());
}

// Groups of inputs that do not lie side by side: weight, pooling and gradients are those of the sorted input; an
// ordinary LoRA's A is not.
TEST(Linear, SortsItsInputs) {
  const at::Tensor order = random("order", {kIn}).argsort(), x = random("x", {kTokens, kIn}),
                   dy = random("dy", {kTokens, kOut});
  const double tolerance = (96 + 3 + 2) * std::ldexp(1.0, -24);
  quant::PackedWeight weight = quant::round_to_nearest("w", random("w", {kOut, kIn}), 4, kGroup).weight;
  const at::Tensor in_groups = weight.dequantize(at::kFloat);
  weight.input_order = order;
  const at::Tensor dense = weight.dequantize(at::kFloat);
  EXPECT_TRUE(dense.index_select(1, order).equal(in_groups));
  EXPECT_FALSE(dense.equal(in_groups));
  EXPECT_LE(distance(weight.multiply(x), expected(x, dense, {}, nullptr)), tolerance);
  EXPECT_LE(distance(weight.multiply(x.narrow(0, 0, 1)), expected(x, dense, {}, nullptr).narrow(0, 0, 1)), tolerance);
  for (const io::Pooling pooling : {io::Pooling::kSum, io::Pooling::kMean, io::Pooling::kNone}) {
    Linear linear("m", weight);
    linear.adapter = adapter(pooling);
    const at::Tensor inputs = x.clone().requires_grad_(true);
    const at::Tensor y = linear.forward(inputs, {});
    const bool pooled = pooling != io::Pooling::kNone;
    const at::Tensor golden_inputs = x.to(at::kDouble).requires_grad_(true),
                     sorted = golden_inputs.index_select(1, order);
    const auto with = [&](const at::Tensor& input, const at::Tensor& weights) {
      return expected(input, weights, {}, linear.adapter.get());
    };
    const at::Tensor golden = pooled ? with(sorted, in_groups) : with(golden_inputs, dense);
    EXPECT_LE(distance(y, golden.detach()), tolerance);
    y.backward(dy);
    golden.backward(dy.to(at::kDouble));
    EXPECT_LE(distance(inputs.grad(), golden_inputs.grad()), 2 * tolerance);
    // Must differ: the adapter on the inputs in the other order.
    const at::Tensor other = pooled ? with(x, dense) : with(x.index_select(1, order), in_groups);
    EXPECT_GT(distance(y, other), 0.01);
  }
}

TEST(Linear, AddsBiasAndAdapterToEitherKindOfWeight) {
  const at::Tensor x = random("x", {kTokens, kIn}), bias = random("bias", {kOut});
  // Sums of 96 products, then of 3 groups and rank 2.
  const double tolerance = (96 + 3 + 2) * std::ldexp(1.0, -24);
  for (Linear linear : {packed_linear(), Linear("m", random("w", {kOut, kIn}))}) {
    const at::Tensor weight = linear.quantised() ? linear.packed().dequantize(at::kFloat) : linear.dense();
    EXPECT_EQ(linear.in_features(), kIn);
    EXPECT_EQ(linear.out_features(), kOut);
    EXPECT_LE(distance(linear.forward(x, {}), expected(x, weight, {}, nullptr)), tolerance);
    linear.bias = bias;
    EXPECT_LE(distance(linear.forward(x, {}), expected(x, weight, bias, nullptr)), tolerance);
    EXPECT_GT(distance(linear.forward(x, {}), expected(x, weight, {}, nullptr)), 0.01);
    for (const io::Pooling pooling : {io::Pooling::kSum, io::Pooling::kMean, io::Pooling::kNone}) {
      linear.adapter = adapter(pooling);
      const at::Tensor y = linear.forward(x, {});
      EXPECT_LE(distance(y, expected(x, weight, bias, linear.adapter.get())), tolerance);
      EXPECT_GT(distance(y, expected(x, weight, bias, nullptr)), 0.01);
      Adapter other = *linear.adapter;
      other.scaling *= 1.01;
      EXPECT_GT(distance(y, expected(x, weight, bias, &other)), 10 * tolerance);
    }
  }
}

TEST(Linear, AShorterLastGroupIsAveragedOverItsOwnLength) {
  const int64_t in = 80;  // 32 + 32 + 16
  Linear linear("m", at::zeros({kOut, in}));
  linear.adapter = adapter(io::Pooling::kMean);
  const at::Tensor x = random("short", {kTokens, in}), xd = x.to(at::kDouble);
  const auto with_last = [&](double divisor) {
    const at::Tensor pooled =
        at::stack({xd.slice(1, 0, 32).mean(1), xd.slice(1, 32, 64).mean(1), xd.slice(1, 64, 80).sum(1) / divisor}, 1);
    return linear.adapter->scaling *
           pooled.matmul(linear.adapter->a.to(at::kDouble).t()).matmul(linear.adapter->b.to(at::kDouble).t());
  };
  EXPECT_LE(distance(linear.forward(x, {}), with_last(16)), (32 + 3 + 2) * std::ldexp(1.0, -24));
  EXPECT_GT(distance(linear.forward(x, {}), with_last(32)), 0.01);
}

TEST(Linear, KeepsTheDtypeOfItsInputsAndTheAdapterInF32) {
  const at::Tensor x = random("x", {kTokens, kIn}).to(at::kBFloat16);
  Linear linear = packed_linear();
  linear.adapter = adapter(io::Pooling::kSum);
  const at::Tensor y = linear.forward(x, {});
  EXPECT_EQ(y.scalar_type(), at::kBFloat16);
  EXPECT_EQ(packed_linear().forward(x, {}).scalar_type(), at::kBFloat16);
  // Rounding to bf16 errs by 2^-8 at most: once in the codes' product, once in the result.
  const at::Tensor exact = expected(x, linear.packed().dequantize(at::kFloat), {}, linear.adapter.get());
  EXPECT_LE(distance(y, exact), 2 * std::ldexp(1.0, -8));
  EXPECT_GT(distance(y, exact), std::ldexp(1.0, -14));  // and it is bf16
}

TEST(Linear, WeightBytesAreThoseOfTheStoredForm) {
  EXPECT_EQ(Linear("m", random("w", {kOut, kIn}).to(at::kBFloat16)).weight_bytes(),
            static_cast<uint64_t>(kOut * kIn * 2));
  EXPECT_EQ(packed_linear().weight_bytes(), static_cast<uint64_t>(kOut * kIn / 2 + 2 * kOut * kGroups * 4));
}

}  // namespace
}  // namespace qalora::model
