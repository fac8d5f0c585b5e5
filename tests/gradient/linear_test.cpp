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
double reference_sum(const Linear& linear, const at::Tensor& x, const at::Tensor& a, const at::Tensor& b,
                     const at::Tensor& weights) {
  const kernels::PackedView view = linear.packed().view();
  const at::Tensor xd = x.to(at::kDouble).contiguous();
  std::vector<double> y(kTokens * kOut), pooled(kTokens * 3);
  kernels::reference::matmul(view, xd.data_ptr<double>(), kTokens, y.data());
  using kernels::reference::Pooling;
  const Pooling pooling = linear.adapter->pooling == io::Pooling::kSum ? Pooling::kSum : Pooling::kMean;
  kernels::reference::pool(xd.data_ptr<double>(), kTokens, kIn, kGroup, pooling, pooled.data());
  const at::Tensor z = at::from_blob(pooled.data(), {kTokens, 3}, at::kDouble);
  const at::Tensor total = at::from_blob(y.data(), {kTokens, kOut}, at::kDouble) +
                           linear.adapter->scaling * z.matmul(a.to(at::kDouble).t()).matmul(b.to(at::kDouble).t());
  return (total * weights.to(at::kDouble)).sum().item<double>();
}

// Largest relative distance between `gradient` and central differences of `f` with respect to `at`, in double
// precision.
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
  const auto of_x = [&](const at::Tensor& p) { return reference_sum(linear, p, a, b, weights); };
  const auto of_a = [&](const at::Tensor& p) { return reference_sum(linear, xd, p, b, weights); };
  const auto of_b = [&](const at::Tensor& p) { return reference_sum(linear, xd, a, p, weights); };
  EXPECT_LE(difference_from_numeric(xd, x.grad(), of_x), tolerance);
  EXPECT_LE(difference_from_numeric(a, linear.adapter->a.grad(), of_a), tolerance);
  EXPECT_LE(difference_from_numeric(b, linear.adapter->b.grad(), of_b), tolerance);
  // Must differ: the other pooling's gradient of B, and the wrong sign.
  Linear other = quantised_linear(GetParam() == io::Pooling::kSum ? io::Pooling::kMean : io::Pooling::kSum);
  (other.forward(xd, {}) * weights).sum().backward();
  EXPECT_GT(difference_from_numeric(b, other.adapter->b.grad(), of_b), 0.1);
  EXPECT_GT(difference_from_numeric(b, -linear.adapter->b.grad(), of_b), 0.1);
}

INSTANTIATE_TEST_SUITE_P(Pooling, LinearGradient, ::testing::Values(io::Pooling::kSum, io::Pooling::kMean));

TEST(LinearGradientDense, PackedEqualsItsDenseEquivalent) {
  for (const int bits : {2, 3, 4}) {
    Linear packed = quantised_linear(io::Pooling::kSum, bits);
    Linear dense("module", packed.packed().dequantize(at::kFloat));
    const at::Tensor x1 = random("x", {kTokens, kIn}).requires_grad_(true),
                     x2 = x1.detach().clone().requires_grad_(true);
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
  // The point of pooling in training: what the backward pass needs of x is pool(x), group_size times smaller. Whole
  // groups: a shorter last one is pooled from a padded copy, and keeping that would go unnoticed here.
  constexpr int64_t kWhole = 96;
  const auto references_kept = [&](io::Pooling pooling, int64_t inputs) {
    Linear linear("module", quant::round_to_nearest("w", random("w", {kOut, kWhole}), 4, kGroup).weight);
    linear.adapter =
        std::make_shared<Adapter>(Adapter{random("a", {kRank, inputs}).requires_grad_(true),
                                          random("b", {kOut, kRank}).requires_grad_(true), 0.5, pooling, kGroup, 0});
    const at::Tensor x = random("x", {kTokens, kWhole}).requires_grad_(true) * 2;  // the output of an earlier layer
    const auto before = x.use_count();
    const at::Tensor y = linear.forward(x, {});
    EXPECT_TRUE(y.requires_grad());
    return x.use_count() - before;
  };
  EXPECT_EQ(references_kept(io::Pooling::kSum, 3), 0u);
  EXPECT_EQ(references_kept(io::Pooling::kMean, 3), 0u);
  EXPECT_GT(references_kept(io::Pooling::kNone, kWhole), 0u);  // an ordinary LoRA needs x for dA
}

// Everything in double for x, dy in bf16: {dx of the base, dx of the adapter, dA, dB}.
std::vector<at::Tensor> exact_gradients(const Linear& linear, const at::Tensor& x, const at::Tensor& dy,
                                        io::Pooling pooling) {
  const at::Tensor weight = linear.packed().dequantize(at::kFloat).to(at::kDouble), xd = x.to(at::kDouble),
                   dyd = dy.to(at::kDouble);
  const at::Tensor a = linear.adapter->a.detach().to(at::kDouble), b = linear.adapter->b.detach().to(at::kDouble);
  at::Tensor spread = at::zeros({kIn, 3}, at::kDouble);  // pool(x) = x . spread
  for (int64_t i = 0; i < kIn; ++i) {
    const double length = static_cast<double>(std::min(kGroup, kIn - i / kGroup * kGroup));
    spread[i][i / kGroup] = pooling == io::Pooling::kSum ? 1.0 : 1.0 / length;
  }
  const at::Tensor dz = dyd.matmul(b) * linear.adapter->scaling, pooled = xd.matmul(spread);
  return {dyd.matmul(weight), dz.matmul(a).matmul(spread.t()), dz.t().matmul(pooled),
          dyd.t().matmul(pooled.matmul(a.t())) * linear.adapter->scaling};
}

TEST_P(LinearGradient, InBfloat16RoundsOnlyWhatIsBfloat16) {
  const io::Pooling pooling = GetParam(), other = pooling == io::Pooling::kSum ? io::Pooling::kMean : io::Pooling::kSum;
  Linear linear = quantised_linear(pooling);
  const at::Tensor x = random("x", {kTokens, kIn}).to(at::kBFloat16).requires_grad_(true);
  const at::Tensor dy = random("dy", {kTokens, kOut}).to(at::kBFloat16);
  linear.forward(x, {}).backward(dy);
  const auto exact = exact_gradients(linear, x.detach(), dy, pooling),
             wrong = exact_gradients(linear, x.detach(), dy, other);

  // dx: each weight of the product dy . W is rounded to bf16 (2^-8 of itself), then the product, the adapter's part and
  // their sum.
  const double unit = std::ldexp(1.0, -8);
  const at::Tensor weight = linear.packed().dequantize(at::kFloat).to(at::kDouble);
  const at::Tensor room =
      unit * (dy.to(at::kDouble).abs().matmul(weight.abs()) + 2.1 * (exact[0].abs() + exact[1].abs()));
  const auto within = [&](const at::Tensor& expected) {
    return ((x.grad().to(at::kDouble) - expected).abs() <= room).all().item<bool>();
  };
  EXPECT_EQ(x.grad().scalar_type(), at::kBFloat16);
  EXPECT_TRUE(within(exact[0] + exact[1]));
  EXPECT_FALSE(within(exact[0]));             // the adapter forgotten
  EXPECT_FALSE(within(exact[0] - exact[1]));  // its sign
  EXPECT_FALSE(within(exact[0] + wrong[1]));  // the other pooling

  // dA and dB stay f32 all the way: sums of 32 inputs, 12 outputs, 7 tokens and rank 3.
  const double tolerance = (32 + 12 + 7 + 3) * std::ldexp(1.0, -24);
  const auto distance = [](const at::Tensor& ours, const at::Tensor& expected) {
    return (ours.to(at::kDouble) - expected).abs().max().item<double>() / expected.abs().max().item<double>();
  };
  for (const auto& [ours, index] : {std::pair{linear.adapter->a.grad(), 2}, {linear.adapter->b.grad(), 3}}) {
    EXPECT_LE(distance(ours, exact[index]), tolerance);
    EXPECT_GT(distance(ours, wrong[index]), 0.1);
    EXPECT_GT(distance(ours.to(at::kBFloat16), exact[index]), 10 * tolerance);  // what bf16 gradients would lose
  }
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
    const Linear wrong("module", quant::merge("module", linear.packed(), config, weights));
    EXPECT_GT((wrong.forward(x, {}) - with_adapter).abs().max().item<double>(), 10 * tolerance);
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
  // Gradients of h, the norm's weight and `up`, relative to the largest of each.
  const auto inputs = [](at::ScalarType dtype) {
    std::vector<at::Tensor> result = {random("h", {5, 16}), random("n", {16}), random("u", {5, 16})};
    for (at::Tensor& tensor : result) tensor = tensor.to(dtype).requires_grad_(true);
    return result;
  };
  const at::Tensor dy = random("d", {5, 16});
  const std::vector<at::Tensor> ours = inputs(at::kFloat);
  (swiglu(rms_norm(ours[0], ours[1], 1e-5, at::kFloat).values, ours[2]).values * dy).sum().backward();
  const auto distances = [&](double eps, bool norm_is_constant, bool swap) {
    const std::vector<at::Tensor> in = inputs(at::kDouble);
    at::Tensor inverse = at::rsqrt(in[0].pow(2).mean(-1, true) + eps);
    if (norm_is_constant) inverse = inverse.detach();  // the projection in dh forgotten
    const at::Tensor normed = in[0] * inverse * in[1];
    ((swap ? at::silu(in[2]) * normed : at::silu(normed) * in[2]) * dy).sum().backward();
    std::vector<double> result;
    for (size_t i = 0; i < in.size(); ++i) {
      result.push_back((ours[i].grad() - in[i].grad()).abs().max().item<double>() /
                       in[i].grad().abs().max().item<double>());
    }
    return result;
  };
  // Two sums of 16 (the mean, and its gradient), one of 5 tokens, and about ten products and an exponential around
  // them.
  const double tolerance = (16 + 16 + 5 + 12) * std::ldexp(1.0, -24);
  for (const double distance : distances(1e-5, false, false)) EXPECT_LE(distance, tolerance);
  for (const double distance : distances(1e-3, false, false)) EXPECT_GT(distance, 10 * tolerance);
  EXPECT_GT(distances(1e-5, true, false)[0], 0.01);
  for (const double distance : distances(1e-5, false, true)) EXPECT_GT(distance, 0.01);
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
  // The mean over 50 rows, and its gradients of hidden and head, in double.
  const auto exact = [&](const at::Tensor& wanted) {
    const at::Tensor h = hidden.to(at::kDouble).requires_grad_(true), w = head.to(at::kDouble).requires_grad_(true);
    const at::Tensor loss = at::cross_entropy_loss(h.matmul(w.t()), wanted);
    loss.backward();
    return std::vector<at::Tensor>{loss.detach() * 50, h.grad(), w.grad()};
  };
  const auto distance = [](const at::Tensor& a, const at::Tensor& b) {
    return (a - b).abs().max().item<double>() / b.abs().max().item<double>();
  };
  const auto right = exact(targets), wrong = exact(targets.roll(1));
  // Logits are sums of 16 products below 16 in size (an error of theirs is a relative one of their exponential), the
  // softmax sums 40 of those, and the gradients sum 40 words or 50 rows of them.
  const double tolerance = (16 * 16 + 40 + 50) * std::ldexp(1.0, -24);
  for (const int64_t chunk : {7, 50, 512}) {
    const auto ours = run(chunk);
    for (size_t i = 0; i < ours.size(); ++i) {
      EXPECT_LE(distance(ours[i], right[i]), tolerance) << chunk << " " << i;
      EXPECT_GT(distance(ours[i], wrong[i]), 0.01) << chunk << " " << i;
    }
    EXPECT_GT(distance(ours[1] * 50 / 49, right[1]), 0.01);  // a row lost or counted twice
  }
}

}  // namespace
}  // namespace qalora::model
