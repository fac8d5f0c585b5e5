// The decoder as a whole: rows, segments, cache and recomputation.
#include "qalora/model/llama.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <gtest/gtest.h>

#include <cmath>

#include "qalora/core/error.h"
#include "qalora/model/load.h"
#include "qalora/quant/round_to_nearest.h"
#include "qalora/tensor/random.h"

namespace qalora::model {
namespace {

constexpr int64_t kVocab = 97, kWidest = 80;  // the longest sum in a layer

LlamaConfig tiny_config() {
  LlamaConfig config;
  config.model_type = "llama";
  config.vocab_size = kVocab;
  config.hidden_size = 48;
  config.intermediate_size = kWidest;
  config.layers = 2;
  config.heads = 4;
  config.kv_heads = 2;
  config.head_dim = 12;
  config.context_length = 64;
  config.norm_eps = 1e-5;
  config.initializer_range = 0.3;  // large enough that mistakes show
  return config;
}

Llama tiny_model(const LlamaConfig& config = tiny_config()) { return new_model(config, 1); }

// The same model quantised, with an adapter on every linear layer.
Llama tuned_model(double dropout) {
  Llama model = tiny_model();
  for (Linear* linear : model.linears()) {
    const std::string name = linear->module();
    *linear = Linear(name, quant::round_to_nearest(name, linear->dense().detach(), 4, 16).weight);
    const auto random = [&](const char* part, at::IntArrayRef shape) {
      return tensor::RandomStream(2, part + name).normal_tensor(shape, 0.3).requires_grad_(true);
    };
    const at::Tensor a = random("a ", {3, linear->packed().groups()}), b = random("b ", {linear->out_features(), 3});
    linear->adapter =
        std::make_shared<Adapter>(Adapter{a, b, /*scaling=*/0.5, io::Pooling::kSum, /*group_size=*/16, dropout});
  }
  return model;
}

text::Example example(uint64_t index, int64_t length) {
  tensor::RandomStream random(7, "ids", index);
  text::Example result;
  for (int64_t i = 0; i < length; ++i) result.input_ids.push_back(static_cast<int64_t>(random.below(kVocab)));
  result.labels = result.input_ids;
  return result;
}

at::Tensor run(Llama& model, const text::Batch& batch) {
  const c10::NoGradGuard no_grad;
  return model.forward(batch);
}

double distance(const at::Tensor& a, const at::Tensor& b) {
  return (a - b).abs().max().item<double>() / b.abs().max().item<double>();
}

// Other shapes of a product sum in another order: at most kWidest roundings in each of the four sums in a row of each
// layer.
const double kTolerance = 2 * 4 * kWidest * std::ldexp(1.0, -24);

TEST(Llama, PackedRowsEqualEachExampleAlone) {
  Llama model = tiny_model();
  const text::Example first = example(1, 9), second = example(2, 13), third = example(3, 20);
  const text::Batch packed = text::pack_batch({{first, second}, {third}}, 24);
  const at::Tensor together = run(model, packed);
  const auto alone = [&](const text::Example& e) { return run(model, text::pad_batch({{e}})); };
  EXPECT_LE(distance(together.slice(0, 0, 9), alone(first)), kTolerance);
  EXPECT_LE(distance(together.slice(0, 9, 22), alone(second)), kTolerance);
  EXPECT_LE(distance(together.slice(0, 24, 44), alone(third)), kTolerance);
  // Must differ: both examples as one segment, with and without positions that start again.
  text::Batch merged = packed;
  merged.segments = {{0, 24}, {24, 48}};
  EXPECT_GT(distance(run(model, merged).slice(0, 9, 22), alone(second)), 0.01);
  merged.positions = at::arange(24, at::kLong).expand({2, 24}).contiguous();
  EXPECT_GT(distance(run(model, merged).slice(0, 9, 22), alone(second)), 0.01);
}

TEST(Llama, PositionsCountByTheirDifferences) {
  // Rotary attention sees only how far apart two tokens are, so a segment that does not start at 0 is the same up to
  // rounding (the angles are other numbers); what keeps packed examples apart are the segments. Other distances are
  // another thing.
  Llama model = tiny_model();
  text::Batch batch = text::pad_batch({{example(1, 20)}});
  const at::Tensor from_zero = run(model, batch), positions = batch.positions;
  batch.positions = positions + 40;
  EXPECT_LE(distance(run(model, batch), from_zero),
            4 * kTolerance);  // f32 tables of cos and sin, in each product of q and k
  EXPECT_FALSE(at::equal(run(model, batch), from_zero));
  batch.positions = positions * 2;
  EXPECT_GT(distance(run(model, batch), from_zero), 0.01);
}

TEST(Llama, RowsAndPaddingDoNotTouchEachOther) {
  Llama model = tiny_model();
  const at::Tensor before = run(model, text::pad_batch({{example(1, 12), example(2, 16)}}));
  const at::Tensor other = run(model, text::pad_batch({{example(3, 12), example(2, 16)}}));
  EXPECT_TRUE(at::equal(other.slice(0, 16), before.slice(0, 16)));
  EXPECT_FALSE(at::equal(other.slice(0, 0, 12), before.slice(0, 0, 12)));
  text::Batch padded = text::pad_batch({{example(1, 12), example(2, 16)}});
  padded.input_ids[0].slice(0, 12).fill_(5);  // what stands in the padding
  EXPECT_TRUE(at::equal(run(model, padded).slice(0, 0, 12), before.slice(0, 0, 12)));
  padded.input_ids[0].slice(0, 11, 12).fill_(5);
  EXPECT_FALSE(at::equal(run(model, padded).slice(0, 0, 12), before.slice(0, 0, 12)));
}

TEST(Llama, GradientCheckpointingGivesTheSameGradientsToTheBit) {
  const text::Batch batch = text::pack_batch({{example(1, 9), example(2, 13)}, {example(3, 20)}}, 24);
  const auto gradients = [&](Llama model, Recompute recompute, uint64_t dropout_index) {
    ForwardOptions options;
    options.recompute = recompute;
    options.dropout = {.training = true, .seed = 3, .index = dropout_index};
    model.loss_sum(model.forward(batch, options), batch.targets.reshape({-1})).backward();
    std::vector<at::Tensor> parts;
    for (const Linear* linear : model.linears()) {
      const bool tuned = linear->adapter != nullptr;
      for (const at::Tensor& value :
           tuned ? std::vector{linear->adapter->a, linear->adapter->b} : std::vector{linear->dense()}) {
        parts.push_back(value.grad().flatten());
      }
    }
    if (model.embedding.grad().defined()) parts.push_back(model.embedding.grad().flatten());
    return at::cat(parts);
  };
  const at::Tensor plain = gradients(tuned_model(0.3), Recompute::kNothing, 5);
  EXPECT_GT(plain.abs().max().item<double>(), 0.1);
  EXPECT_TRUE(at::equal(gradients(tuned_model(0.3), Recompute::kLayer, 5),
                        plain));  // dropout included: a recomputed layer drops the same entries
  EXPECT_FALSE(at::equal(gradients(tuned_model(0.3), Recompute::kLayer, 6), plain));
  const at::Tensor full = gradients(tiny_model(), Recompute::kNothing, 5);
  EXPECT_TRUE(at::equal(gradients(tiny_model(), Recompute::kLayer, 5), full));
  EXPECT_NE(full.size(0), plain.size(0));
}

TEST(Llama, CachedForwardEqualsTheWholeForward) {
  Llama model = tuned_model(0);
  const text::Example e = example(4, 21);
  const at::Tensor ids = at::tensor(e.input_ids, at::kLong), whole = run(model, text::pad_batch({{e}}));
  const c10::NoGradGuard no_grad;
  // A prompt, single tokens, several at once behind others, and the buffers grown twice. `spoil` acts after the first
  // part.
  const auto in_parts = [&](auto spoil) {
    KvCache cache;
    std::vector<at::Tensor> parts;
    for (const auto& [begin, end] : {std::pair<int64_t, int64_t>{0, 7}, {7, 8}, {8, 9}, {9, 15}, {15, 21}}) {
      parts.push_back(model.forward_cached(ids.slice(0, begin, end), cache));
      if (begin == 0) spoil(cache);
      EXPECT_GE(cache.keys[0].size(0), cache.length);
    }
    return at::cat(parts);
  };
  EXPECT_LE(distance(in_parts([](KvCache&) {}), whole), kTolerance);
  EXPECT_GT(distance(in_parts([](KvCache& cache) { cache.length -= 1; }), whole), 0.01);  // a token forgotten
  EXPECT_GT(distance(in_parts([](KvCache& cache) { cache.keys[1].narrow(0, 0, 2).zero_(); }), whole), 0.01);
  EXPECT_GT(distance(in_parts([](KvCache& cache) { std::swap(cache.values[0], cache.values[1]); }), whole), 0.01);
}

TEST(Llama, LossCountsOnlyRowsWithATarget) {
  Llama model = tiny_model();
  const at::Tensor hidden = tensor::RandomStream(1, "h").normal_tensor({6, 48}, 1.0);
  const at::Tensor targets = at::tensor({5, -100, 96, -100, -100, 0}, at::kLong),
                   counted = at::tensor({0, 2, 5}, at::kLong);
  const at::Tensor scores = at::log_softmax(hidden.to(at::kDouble).matmul(model.head.detach().to(at::kDouble).t()), -1);
  const double expected = -(scores[0][5] + scores[2][96] + scores[5][0]).item<double>();
  const double loss = model.loss_sum(hidden, targets).item<double>();
  EXPECT_NEAR(loss, expected, 48 * std::ldexp(1.0, -24) * expected);
  EXPECT_GT(std::abs(loss + scores[1][0].item<double>() - expected), 0.01);
}

TEST(Llama, RefusesIdsAndLengthsThatDoNotFit) {
  Llama model = tiny_model();
  text::Batch batch = text::pad_batch({{example(1, 4)}});
  for (const int64_t id : {int64_t{-1}, kVocab}) {
    batch.input_ids[0][2] = id;
    EXPECT_THROW(run(model, batch), DataError) << id;
    KvCache cache;
    EXPECT_THROW(model.forward_cached(batch.input_ids[0], cache), DataError) << id;
  }
  EXPECT_NO_THROW(run(model, text::pad_batch({{example(1, 64)}})));
  EXPECT_THROW(run(model, text::pad_batch({{example(1, 65)}})), UserError);
  KvCache cache;
  const c10::NoGradGuard no_grad;
  model.forward_cached(at::zeros({64}, at::kLong), cache);
  EXPECT_THROW(model.forward_cached(at::zeros({1}, at::kLong), cache), UserError);
}

TEST(Llama, DynamicRopeFollowsTheLengthOnlyBeyondTheTrainedOne) {
  LlamaConfig config = tiny_config();
  config.rope.kind = RopeKind::kDynamic;
  config.rope.factor = 2;
  config.rope.original_context = 16;
  Llama dynamic = tiny_model(config), plain = tiny_model();
  const auto differ = [&](int64_t length) {
    const text::Batch batch = text::pad_batch({{example(1, length)}});
    return distance(run(dynamic, batch), run(plain, batch));
  };
  EXPECT_EQ(differ(16), 0);
  EXPECT_GT(differ(17), 1e-3);
  EXPECT_EQ(differ(10), 0);  // the stretched table is not kept for shorter ones
  EXPECT_GT(differ(30), differ(17));
}

TEST(Llama, EveryPartOfALayerIsInTheTable) {
  Llama model = tiny_model();
  const std::vector<Linear*> linears = model.linears();
  std::vector<std::string> expected;
  for (const ExpectedTensor& tensor : expected_tensors(model.config)) {
    if (tensor.linear) expected.push_back(tensor.name);
  }
  ASSERT_EQ(linears.size(), 14u);
  uint64_t bytes = model.embedding.nbytes() + model.head.nbytes();
  for (size_t i = 0; i < linears.size(); ++i) {
    EXPECT_EQ(linears[i]->module() + ".weight", expected[i]);
    bytes += linears[i]->dense().nbytes();
  }
  EXPECT_EQ(model.weight_bytes(), bytes);
  int64_t parameters = 0;
  for (const auto& [name, value] : named_weights(model)) parameters += value.numel();
  EXPECT_EQ(parameters, model.config.parameters());
}

}  // namespace
}  // namespace qalora::model
