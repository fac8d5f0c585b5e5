// Gradients of the pieces of a layer against finite differences and against the dense equivalent.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

#include "qalora/kernels/reference.h"
#include "qalora/model/functions.h"
#include "qalora/model/linear.h"
#include "qalora/quant/merge.h"
#include "qalora/quant/round_to_nearest.h"
#include "qalora/tensor/random.h"

namespace qalora::model {
namespace {

constexpr int64_t kTokens = 7, kIn = 80, kOut = 12, kGroup = 32, kRank = 3;  // 80 = 2 whole groups and a half one

at::Tensor random(const char* name, at::IntArrayRef shape, double deviation = 1.0) {
  return tensor::RandomStream(7, name).normal_tensor(shape, deviation);
}

Linear quantised_linear(io::Pooling pooling, int bits = 4) {
  quant::QuantizeResult result = quant::round_to_nearest("w", random("w", {kOut, kIn}), bits, kGroup);
  Linear linear("module", std::move(result.weight));
  linear.adapter = std::make_shared<Adapter>();
  linear.adapter->a = random("a", {kRank, 3}).requires_grad_(true);
  linear.adapter->b = random("b", {kOut, kRank}).requires_grad_(true);
  linear.adapter->scaling = 0.5;
  linear.adapter->pooling = pooling;
  linear.adapter->group_size = kGroup;
  return linear;
}

// The same map in plain double-precision loops: y = x W^T + scaling * pool(x) A^T B^T.
double reference_sum(const Linear& linear, const at::Tensor& x, const at::Tensor& a, const at::Tensor& b, const at::Tensor& weights) {
  const kernels::PackedView view = linear.packed().view();
  const at::Tensor xd = x.to(at::kDouble).contiguous();
  std::vector<double> y(kTokens * kOut), pooled(kTokens * 3);
  kernels::reference::matmul(view, xd.data_ptr<double>(), kTokens, y.data());
  const auto pooling = linear.adapter->pooling == io::Pooling::kSum ? kernels::reference::Pooling::kSum : kernels::reference::Pooling::kMean;
  kernels::reference::pool(xd.data_ptr<double>(), kTokens, kIn, kGroup, pooling, pooled.data());
  const at::Tensor z = at::from_blob(pooled.data(), {kTokens, 3}, at::kDouble);
  const at::Tensor total = at::from_blob(y.data(), {kTokens, kOut}, at::kDouble) +
                           linear.adapter->scaling * z.matmul(a.to(at::kDouble).t()).matmul(b.to(at::kDouble).t());
  return (total * weights.to(at::kDouble)).sum().item<double>();
}

// Largest relative distance between `gradient` and central differences of `f` with respect to `at`, in double precision.
template <typename F>
double difference_from_numeric(const at::Tensor& at, const at::Tensor& gradient, F f) {
  const double h = 1e-4;
  at::Tensor point = at.detach().to(at::kDouble).clone();
  const at::Tensor flat = point.view({-1}), expected = gradient.to(at::kDouble).reshape({-1});
  double worst = 0;
  const double scale = expected.abs().max().item<double>();
  for (int64_t i = 0; i < flat.size(0); ++i) {
    const double value = flat[i].item<double>();
    flat[i].fill_(value + h);
    const double above = f(point);
    flat[i].fill_(value - h);
    const double below = f(point);
    flat[i].fill_(value);
    worst = std::max(worst, std::abs((above - below) / (2 * h) - expected[i].item<double>()) / scale);
  }
  return worst;
}

class LinearGradient : public ::testing::TestWithParam<io::Pooling> {};

TEST_P(LinearGradient, EqualsFiniteDifferences) {
  Linear linear = quantised_linear(GetParam());
  const at::Tensor x = random("x", {kTokens, kIn}).requires_grad_(true), weights = random("dy", {kTokens, kOut});
  (linear.forward(x, {}) * weights).sum().backward();
  const at::Tensor a = linear.adapter->a.detach(), b = linear.adapter->b.detach(), xd = x.detach();
  // The map is bilinear, so central differences are exact up to rounding; the f32 gradients sum at most 80 products:
  // 80 * 2^-24 = 5e-6 relative to the largest entry, with room for three products in a row.
  const double tolerance = 2e-5;
  EXPECT_LE(difference_from_numeric(xd, x.grad(), [&](const at::Tensor& p) { return reference_sum(linear, p, a, b, weights); }), tolerance);
  EXPECT_LE(difference_from_numeric(a, linear.adapter->a.grad(), [&](const at::Tensor& p) { return reference_sum(linear, xd, p, b, weights); }), tolerance);
  EXPECT_LE(difference_from_numeric(b, linear.adapter->b.grad(), [&](const at::Tensor& p) { return reference_sum(linear, xd, a, p, weights); }), tolerance);
  // Must differ: the other pooling's gradient of B, and the wrong sign.
  Linear other = quantised_linear(GetParam() == io::Pooling::kSum ? io::Pooling::kMean : io::Pooling::kSum);
  (other.forward(xd, {}) * weights).sum().backward();
  EXPECT_GT(difference_from_numeric(b, other.adapter->b.grad(), [&](const at::Tensor& p) { return reference_sum(linear, xd, a, p, weights); }), 0.1);
  EXPECT_GT(difference_from_numeric(b, -linear.adapter->b.grad(), [&](const at::Tensor& p) { return reference_sum(linear, xd, a, p, weights); }), 0.1);
}

INSTANTIATE_TEST_SUITE_P(Pooling, LinearGradient, ::testing::Values(io::Pooling::kSum, io::Pooling::kMean));

TEST(LinearGradientDense, PackedEqualsItsDenseEquivalent) {
  for (const int bits : {2, 3, 4}) {
    Linear packed = quantised_linear(io::Pooling::kSum, bits);
    Linear dense("module", packed.packed().dequantize(at::kFloat));
    const at::Tensor x1 = random("x", {kTokens, kIn}).requires_grad_(true), x2 = x1.detach().clone().requires_grad_(true);
    packed.adapter = nullptr;
    const at::Tensor y1 = packed.forward(x1, {}), y2 = dense.forward(x2, {});
    EXPECT_TRUE(at::equal(y1, y2));  // the same product of the same numbers
    const at::Tensor dy = random("dy", {kTokens, kOut});
    (y1 * dy).sum().backward();
    (y2 * dy).sum().backward();
    EXPECT_TRUE(at::equal(x1.grad(), x2.grad()));
    EXPECT_FALSE(at::equal(x1.grad(), dy.matmul(dense.dense().add(1e-3))));
  }
}

TEST(LinearGradientDense, PooledAdapterKeepsNothingOfTheInput) {
  // The point of pooling in training: what the backward pass needs of x is pool(x), group_size times smaller.
  Linear linear = quantised_linear(io::Pooling::kSum);
  at::Tensor x = random("x", {kTokens, kIn});
  const at::Tensor watched = x;
  const auto before = watched.use_count();
  const at::Tensor y = linear.forward(x, {});
  EXPECT_EQ(watched.use_count(), before);
  EXPECT_TRUE(y.requires_grad());
}

TEST(LinearMerge, MergedOffsetsReproduceTheAdapter) {
  for (const io::Pooling pooling : {io::Pooling::kSum, io::Pooling::kMean}) {
    Linear linear = quantised_linear(pooling);
    io::AdapterConfig config;
    config.rank = kRank;
    config.scaling = linear.adapter->scaling;
    config.pooling = pooling;
    config.group_size = kGroup;
    const io::AdapterWeights weights{linear.adapter->a.detach(), linear.adapter->b.detach()};
    Linear merged("module", quant::merge("module", linear.packed(), config, weights));
    const at::Tensor x = random("x", {kTokens, kIn});
    const at::Tensor with_adapter = linear.forward(x, {}).detach(), from_merged = merged.forward(x, {});
    // Sums of 80 products of size about 10: 80 * 2^-24 * 10 each way.
    const double tolerance = 2 * 80 * std::ldexp(1.0, -24) * 10;
    EXPECT_LE((with_adapter - from_merged).abs().max().item<double>(), tolerance);
    // Must differ: offsets rounded to bf16, the other sign.
    quant::PackedWeight rounded = merged.packed();
    rounded.offsets = rounded.offsets.to(at::kBFloat16).to(at::kFloat);
    EXPECT_GT((Linear("module", rounded).forward(x, {}) - with_adapter).abs().max().item<double>(), 10 * tolerance);
    config.scaling = -config.scaling;
    EXPECT_GT((Linear("module", quant::merge("module", linear.packed(), config, weights)).forward(x, {}) - with_adapter).abs().max().item<double>(), 10 * tolerance);
  }
}

TEST(Dropout, FollowsItsKeyAndKeepsTheMean) {
  Linear linear = quantised_linear(io::Pooling::kSum);
  linear.adapter->dropout = 0.5;
  const at::Tensor x = random("x", {kTokens, kIn});
  const auto run = [&](bool training, uint64_t index) { return linear.forward(x, {training, 1, index}).detach(); };
  EXPECT_TRUE(at::equal(run(true, 3), run(true, 3)));
  EXPECT_FALSE(at::equal(run(true, 3), run(true, 4)));
  EXPECT_FALSE(at::equal(run(true, 3), run(false, 3)));
  at::Tensor mean = at::zeros({kTokens, kOut});
  const int draws = 4000;
  for (int i = 0; i < draws; ++i) mean += run(true, static_cast<uint64_t>(i)) / draws;
  // Each entry's deviation is about that of the adapter's part; a mean of 4000 draws lies within five standard errors.
  const double part = (run(false, 0) - Linear("m", linear.packed()).forward(x, {})).abs().max().item<double>();
  EXPECT_LE((mean - run(false, 0)).abs().max().item<double>(), 5 * 3 * part / std::sqrt(draws));
}

TEST(Functions, RmsNormAndSwigluEqualComposedOperators) {
  const at::Tensor h1 = random("h", {5, 16}).requires_grad_(true), h2 = h1.detach().clone().requires_grad_(true);
  const at::Tensor w1 = random("n", {16}).requires_grad_(true), w2 = w1.detach().clone().requires_grad_(true);
  const at::Tensor up1 = random("u", {5, 16}).requires_grad_(true), up2 = up1.detach().clone().requires_grad_(true);
  const at::Tensor dy = random("d", {5, 16});
  (swiglu(rms_norm(h1, w1, 1e-5, at::kFloat), up1) * dy).sum().backward();
  const at::Tensor normed = h2 * at::rsqrt(h2.pow(2).mean(-1, true) + 1e-5) * w2;
  (at::silu(normed) * up2 * dy).sum().backward();
  for (const auto& [ours, composed] : {std::pair{h1, h2}, {w1, w2}, {up1, up2}}) {
    EXPECT_LE((ours.grad() - composed.grad()).abs().max().item<double>(), 1e-5);
    EXPECT_GT(composed.grad().abs().max().item<double>(), 0.1);
  }
}

TEST(Functions, CrossEntropyInChunksEqualsTheWhole) {
  const at::Tensor hidden = random("hidden", {50, 16}), head = random("head", {40, 16});
  const at::Tensor targets = at::arange(50, at::kLong).remainder(40);
  const auto run = [&](int64_t chunk) {
    const at::Tensor h = hidden.clone().requires_grad_(true), w = head.clone().requires_grad_(true);
    const at::Tensor loss = linear_cross_entropy(h, w, targets, chunk);
    (loss / 50).backward();
    return std::vector<at::Tensor>{loss.detach(), h.grad(), w.grad()};
  };
  const at::Tensor h = hidden.clone().requires_grad_(true), w = head.clone().requires_grad_(true);
  const at::Tensor loss = at::cross_entropy_loss(h.matmul(w.t()), targets);
  loss.backward();
  for (const int64_t chunk : {7, 50, 512}) {
    const auto ours = run(chunk);
    EXPECT_NEAR(ours[0].item<double>() / 50, loss.item<double>(), 1e-5);
    EXPECT_LE((ours[1] - h.grad()).abs().max().item<double>(), 1e-6);
    EXPECT_LE((ours[2] - w.grad()).abs().max().item<double>(), 1e-6);
  }
  EXPECT_GT(h.grad().abs().max().item<double>(), 1e-3);
}

}  // namespace
}  // namespace qalora::model
