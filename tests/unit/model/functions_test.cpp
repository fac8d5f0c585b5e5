// Attention and its backward against composed operators in double precision, segment by segment; recomputed layers.
#include "qalora/model/functions.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "qalora/tensor/random.h"

namespace qalora::model {
namespace {

using Segments = std::vector<std::pair<int64_t, int64_t>>;

constexpr int64_t kTokens = 12, kHeads = 6, kKvHeads = 2, kHeadDim = 8;

at::Tensor random(const char* name, at::IntArrayRef shape) {
  return tensor::RandomStream(7, name).normal_tensor(shape, 1.0);
}

// What a wrong implementation would do.
enum class Mistake { kNone, kTiledKeys, kNoCausalMask, kNoScale };

// softmax(q k^T / sqrt(d)) v in the inputs' dtype, head by head; query head h reads key head h / (heads / kv_heads).
at::Tensor composed(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const Segments& segments,
                    Mistake mistake) {
  std::vector<at::Tensor> rows;
  for (const auto& [begin, end] : segments) {
    std::vector<at::Tensor> heads;
    for (int64_t head = 0; head < kHeads; ++head) {
      const int64_t shared = mistake == Mistake::kTiledKeys ? head % kKvHeads : head / (kHeads / kKvHeads);
      const at::Tensor query = q.slice(0, begin, end).select(1, head), key = k.slice(0, begin, end).select(1, shared);
      at::Tensor scores = query.matmul(key.t());
      if (mistake != Mistake::kNoScale) scores = scores / std::sqrt(static_cast<double>(kHeadDim));
      const at::Tensor later = at::ones({end - begin, end - begin}, at::kBool).triu(1);
      if (mistake != Mistake::kNoCausalMask)
        scores = scores.masked_fill(later, -std::numeric_limits<double>::infinity());
      heads.push_back(at::softmax(scores, -1).matmul(v.slice(0, begin, end).select(1, shared)));
    }
    rows.push_back(at::cat(heads, -1));
  }
  return at::cat(rows, 0);
}

// The output and the gradients of q, k and v, one behind the other, in double.
template <typename F>
at::Tensor run(at::ScalarType dtype, F attend) {
  std::vector<at::Tensor> inputs;
  for (const auto& [name, heads] : {std::pair{"q", kHeads}, {"k", kKvHeads}, {"v", kKvHeads}}) {
    inputs.push_back(random(name, {kTokens, heads, kHeadDim}).to(dtype).requires_grad_(true));
  }
  const at::Tensor out = attend(inputs[0], inputs[1], inputs[2]);
  (out * random("dy", {kTokens, kHeads * kHeadDim}).to(dtype)).sum().backward();
  std::vector<at::Tensor> parts = {out.detach().flatten().to(at::kDouble)};
  for (const at::Tensor& input : inputs) parts.push_back(input.grad().flatten().to(at::kDouble));
  return at::cat(parts);
}

TEST(Attention, ForwardAndBackwardWithGroupedHeadsEqualComposedOperators) {
  const Segments packed = {{0, 4}, {4, 12}}, rows = {{0, 6}, {6, 12}}, whole = {{0, 12}};
  for (const Segments& segments : {packed, rows, whole}) {
    const at::Tensor ours =
        run(at::kFloat, [&](const auto& q, const auto& k, const auto& v) { return attention(q, k, v, segments); });
    const auto distance = [&](const Segments& cut, Mistake mistake) {
      const at::Tensor expected = run(
          at::kDouble, [&](const auto& q, const auto& k, const auto& v) { return composed(q, k, v, cut, mistake); });
      return (ours - expected).abs().max().item<double>() / expected.abs().max().item<double>();
    };
    // A gradient passes four sums in a row, of head_dim or at most 12 terms each, and 3 heads add into one key: 4 x 12
    // x 3 roundings would be the worst of all cases.
    const double tolerance = 4 * 12 * 3 * std::ldexp(1.0, -24);
    EXPECT_LE(distance(segments, Mistake::kNone), tolerance);
    for (const Mistake mistake : {Mistake::kTiledKeys, Mistake::kNoCausalMask, Mistake::kNoScale}) {
      EXPECT_GT(distance(segments, mistake), 0.01);
    }
    for (const Segments& other : {packed, rows, whole}) {
      if (other == segments) continue;
      EXPECT_GT(distance(other, Mistake::kNone), 0.01);
    }
  }
}

TEST(Attention, OtherSegmentsAndPaddingDoNotReachASegment) {
  const Segments segments = {{0, 5}, {5, 12}};
  const at::Tensor q = random("q", {kTokens, kHeads, kHeadDim}), k = random("k", {kTokens, kKvHeads, kHeadDim});
  const at::Tensor v = random("v", {kTokens, kKvHeads, kHeadDim}), before = attention(q, k, v, segments);
  at::Tensor first = k.clone(), last = k.clone();
  first.slice(0, 0, 5).add_(1);   // the other segment
  last.slice(0, 11, 12).add_(1);  // a row's end: padding, as those before it see it
  EXPECT_TRUE(at::equal(attention(q, first, v, segments).slice(0, 5), before.slice(0, 5)));
  EXPECT_FALSE(at::equal(attention(q, first, v, segments).slice(0, 0, 5), before.slice(0, 0, 5)));
  EXPECT_TRUE(at::equal(attention(q, last, v, segments).slice(0, 0, 11), before.slice(0, 0, 11)));
  EXPECT_FALSE(at::equal(attention(q, last, v, segments).slice(0, 11), before.slice(0, 11)));
}

TEST(Checkpointed, RecomputesToTheSameBits) {
  const at::Tensor weight = random("w", {16, 16}), x = random("x", {4, 16});
  int calls = 0;
  const auto gradients = [&](bool recompute, double scale) {
    const at::Tensor w = weight.clone().requires_grad_(true), h = x.clone().requires_grad_(true);
    const auto layer = [&, w](const at::Tensor& input) {
      ++calls;
      return at::tanh(input.matmul(w)) * scale;
    };
    (recompute ? checkpointed(h, layer) : layer(h)).square().sum().backward();
    return std::pair{h.grad(), w.grad()};
  };
  const auto plain = gradients(false, 1);
  EXPECT_EQ(calls, 1);
  const auto recomputed = gradients(true, 1), other = gradients(true, 1.001);
  EXPECT_EQ(calls, 5);  // each of them forward and again in backward
  EXPECT_TRUE(at::equal(recomputed.first, plain.first));
  EXPECT_TRUE(at::equal(recomputed.second, plain.second));
  EXPECT_FALSE(at::equal(other.first, plain.first));
}

}  // namespace
}  // namespace qalora::model
