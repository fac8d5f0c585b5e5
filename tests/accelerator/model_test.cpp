// The decoder on an accelerator against the decoder on the CPU: forward, gradients, decoding; through our kernels built
// for the host.
#include <c10/core/GradMode.h>
#include <gtest/gtest.h>

#include <cmath>

#include "accelerator/tiny_model.h"
#include "qalora/core/error.h"
#include "qalora/generate/decoder.h"
#include "qalora/train/optimizer.h"

namespace qalora::test {
namespace {

using model::Llama;

const c10::Device kCpu = c10::kCPU;

// fp32: sums in another order, at most 96 roundings in each of four sums in a row in each of two layers.
const double kFloatTolerance = 2 * 4 * 96 * std::ldexp(1.0, -24);
// bf16: about seven values in a row are rounded to 8 bits in each of the two layers (norm, q/k/v, rotation, attention,
// residual part, gate and up, product), each by at most 2^-9 of itself.
const double kHalfTolerance = 2 * 7 * std::ldexp(1.0, -9);

double tolerance(at::ScalarType compute) { return compute == at::kFloat ? kFloatTolerance : kHalfTolerance; }

struct Trained {
  at::Tensor hidden;
  double loss = 0;
  std::vector<at::Tensor> gradients;  // of A and B, in order of the layers
};

Trained train_once(Llama model, const text::Batch& batch, const model::ForwardOptions& options = {}) {
  Trained result;
  const at::Tensor hidden = model.forward(batch, options);
  const at::Tensor loss = model.loss_sum(hidden, batch.targets.reshape({-1}));
  loss.backward();
  result.hidden = hidden.detach().cpu();
  result.loss = loss.item<double>();
  for (model::Linear* linear : model.linears()) {
    if (!linear->adapter) continue;
    result.gradients.push_back(linear->adapter->a.grad().cpu());
    result.gradients.push_back(linear->adapter->b.grad().cpu());
  }
  return result;
}

double worst_gradient(const Trained& a, const Trained& b) {
  double worst = 0;
  for (size_t i = 0; i < a.gradients.size(); ++i)
    worst = std::max(worst, relative_error(a.gradients[i], b.gradients[i]));
  return worst;
}

// 51 tokens: the kernels for a few dozen rows; 600: whole panels.
text::Batch rows_of(int64_t tokens) {
  if (tokens < 100) return text::pack_batch({{tiny_example(1, 20), tiny_example(2, tokens - 20)}}, tokens);
  return text::pack_batch({{tiny_example(1, 130), tiny_example(2, tokens - 130)}}, tokens);
}

TEST(Accelerator, ForwardAndGradientsAreTheCpus) {
  const c10::Device device = test_device();
  for (const at::ScalarType compute : {at::kFloat, at::kBFloat16}) {
    for (const int bits : {4, 3, 2}) {
      for (const int64_t tokens : {int64_t{51}, int64_t{600}}) {
        if (tokens == 600 && bits == 3) continue;  // the panel's kernel has its own tests
        SCOPED_TRACE(message("bits ", bits, ", tokens ", tokens, ", ", c10::toString(compute)));
        const text::Batch batch = rows_of(tokens);
        const TinyOptions options{.bits = bits, .pooling = bits == 3 ? io::Pooling::kMean : io::Pooling::kSum};
        const Trained expected = train_once(tiny_model(kCpu, at::kFloat, options), batch);
        const Trained got = train_once(tiny_model(device, compute, options), batch);
        EXPECT_LE(distance(got.hidden, expected.hidden), tolerance(compute));
        EXPECT_NEAR(got.loss / expected.loss, 1, tolerance(compute));
        EXPECT_LE(
            worst_gradient(got, expected),
            4 * tolerance(compute));  // back through the layers: twice as many roundings, and those of the forward
        // Must differ: without adapters, by far more.
        TinyOptions bare = options;
        bare.adapters = false;
        Llama without = tiny_model(device, compute, bare);
        const c10::NoGradGuard no_grad;
        EXPECT_GT(distance(without.forward(batch), expected.hidden), 4 * tolerance(compute));
      }
    }
  }
}

// Layers whose inputs are sorted, and layers that read the same input, each with sums of its own groups.
TEST(Accelerator, SortedInputsAndMixedGroupSizesAreTheCpus) {
  const c10::Device device = test_device();
  for (const TinyOptions& options : {TinyOptions{.sorted = true}, TinyOptions{.mixed = true}}) {
    for (const at::ScalarType compute : {at::kFloat, at::kBFloat16}) {
      for (const int64_t tokens : {int64_t{51}, int64_t{600}}) {
        SCOPED_TRACE(message(options.sorted ? "sorted" : "mixed", ", tokens ", tokens, ", ", c10::toString(compute)));
        const text::Batch batch = rows_of(tokens);
        const Trained expected = train_once(tiny_model(kCpu, at::kFloat, options), batch);
        const Trained got = train_once(tiny_model(device, compute, options), batch);
        EXPECT_LE(distance(got.hidden, expected.hidden), tolerance(compute));
        EXPECT_LE(worst_gradient(got, expected), 4 * tolerance(compute));
        // Must differ: inputs as they come, and one group size everywhere.
        const Trained plain = train_once(tiny_model(device, compute), batch);
        EXPECT_GT(distance(plain.hidden, expected.hidden), 4 * tolerance(compute));
      }
    }
  }
}

TEST(Accelerator, DecodingWithSortedInputsIsTheForwardPass) {
  const c10::Device device = test_device();
  Llama model = tiny_model(device, at::kFloat, {.sorted = true});
  const c10::NoGradGuard no_grad;
  const text::Batch batch = text::pack_batch({{tiny_example(1, 24)}}, 24);
  const at::Tensor whole = model.forward(batch);
  model::KvCache cache;
  const at::Tensor ids = batch.input_ids.reshape({-1}).to(device);
  std::vector<at::Tensor> parts = {model.forward_cached(ids.narrow(0, 0, 20), cache)};
  for (int64_t i = 20; i < 24; ++i) parts.push_back(model.forward_cached(ids.narrow(0, i, 1), cache));
  EXPECT_LE(distance(at::cat(parts), whole), kFloatTolerance);
}

TEST(Accelerator, AnAdapterBesideItsBaseIsTheSameFunction) {
  const c10::Device device = test_device();
  const text::Batch batch = rows_of(51);
  const auto run = [&](bool beside) {
    Llama model = tiny_model(device, at::kFloat);
    for (model::Linear* linear : model.linears()) linear->adapter->beside = beside;
    return train_once(model, batch);
  };
  const Trained folded = run(false), beside = run(true);
  EXPECT_LE(distance(folded.hidden, beside.hidden), kFloatTolerance);
  EXPECT_LE(worst_gradient(folded, beside), 4 * kFloatTolerance);
  EXPECT_NE(folded.loss, 0);
}

TEST(Accelerator, DropoutDropsWhatTheCpuDrops) {
  const c10::Device device = test_device();
  const text::Batch batch = rows_of(51);
  const TinyOptions options{.dropout = 0.4};
  model::ForwardOptions training;
  training.dropout = {.training = true, .seed = 5, .index = 3};
  const Trained expected = train_once(tiny_model(kCpu, at::kFloat, options), batch, training);
  EXPECT_LE(distance(train_once(tiny_model(device, at::kFloat, options), batch, training).hidden, expected.hidden),
            kFloatTolerance);
  model::ForwardOptions other = training;
  other.dropout.index = 4;
  EXPECT_GT(distance(train_once(tiny_model(device, at::kFloat, options), batch, other).hidden, expected.hidden), 1e-3);
}

TEST(Accelerator, RecomputedLayersGiveTheSameGradients) {
  const c10::Device device = test_device();
  const text::Batch batch = rows_of(51);
  const TinyOptions dropping{.dropout = 0.3};  // what is dropped is dropped both times
  model::ForwardOptions options;
  options.dropout = {.training = true, .seed = 3, .index = 1};
  const Trained kept = train_once(tiny_model(device, at::kBFloat16, dropping), batch, options);
  EXPECT_GT(distance(kept.hidden, train_once(tiny_model(device, at::kBFloat16), batch).hidden), 1e-3);
  for (const model::Recompute recompute : {model::Recompute::kMlp, model::Recompute::kLayer}) {
    options.recompute = recompute;
    const Trained recomputed = train_once(tiny_model(device, at::kBFloat16, dropping), batch, options);
    EXPECT_TRUE(at::equal(kept.hidden, recomputed.hidden));
    for (size_t i = 0; i < kept.gradients.size(); ++i)
      EXPECT_TRUE(at::equal(kept.gradients[i], recomputed.gradients[i])) << i;
  }
}

// Inference takes stacked products and folded offsets that it keeps; training must never see stale ones.
TEST(Accelerator, InferenceFollowsTheAdapter) {
  const c10::Device device = test_device();
  const text::Batch batch = rows_of(51);
  Llama model = tiny_model(device, at::kFloat);
  const auto infer = [&] {
    const c10::NoGradGuard no_grad;
    return model.forward(batch).cpu();
  };
  const at::Tensor before = infer();
  EXPECT_LE(distance(before, train_once(model, batch).hidden), kFloatTolerance);
  {
    const c10::NoGradGuard no_grad;
    for (model::Linear* linear : model.linears()) linear->adapter->b.mul_(-1.5);
  }
  const at::Tensor after = infer();
  EXPECT_GT(distance(after, before), 1e-2);
  for (model::Linear* linear : model.linears())
    linear->adapter->a.mutable_grad().reset(), linear->adapter->b.mutable_grad().reset();
  EXPECT_LE(distance(after, train_once(model, batch).hidden), kFloatTolerance);
}

// Copies of the weights that stay from one micro-batch to the next: the same bits, also after the adapter has moved.
TEST(Accelerator, ResidentPanelsFollowTheAdapter) {
  const c10::Device device = test_device();
  const text::Batch batch = rows_of(300);
  Llama plain = tiny_model(device, at::kBFloat16), kept = tiny_model(device, at::kBFloat16);
  for (model::Linear* linear : kept.linears()) linear->keep_panels(true);
  at::Tensor last;
  for (int round = 0; round < 3; ++round) {
    const Trained expected = train_once(plain, batch), got = train_once(kept, batch);
    EXPECT_TRUE(at::equal(got.hidden, expected.hidden)) << round;
    for (size_t i = 0; i < got.gradients.size(); ++i)
      ASSERT_TRUE(at::equal(got.gradients[i], expected.gradients[i])) << i << " in round " << round;
    if (last.defined()) {
      EXPECT_EQ(at::equal(last, got.hidden), round == 1);  // a second micro-batch; then a step
    }
    last = got.hidden;
    const c10::AutoGradMode no_gradients(false);
    for (Llama* model : {&plain, &kept}) {
      for (model::Linear* linear : model->linears()) {
        linear->adapter->a.mutable_grad().reset(), linear->adapter->b.mutable_grad().reset();
        if (round == 1) linear->adapter->b.mul_(-1.5);
      }
    }
  }
}

TEST(Accelerator, DecodesAsTheCpuDoes) {
  const c10::Device device = test_device();
  const c10::NoGradGuard no_grad;
  const std::vector<int64_t> ids = tiny_example(3, 300).input_ids;
  for (const at::ScalarType compute : {at::kFloat, at::kBFloat16}) {
    Llama cpu = tiny_model(kCpu, at::kFloat), model = tiny_model(device, compute);
    const auto decode = [&](Llama& which, size_t prompt, size_t end, int64_t swapped) {
      generate::Decoder decoder(which);
      std::vector<at::Tensor> rows = {
          decoder.next({ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(prompt)}).cpu().clone()};
      for (size_t i = prompt; i < end; ++i)
        rows.push_back(
            decoder.next({static_cast<int64_t>(i) == swapped ? (ids[i] + 1) % kTinyVocab : ids[i]}).cpu().clone());
      return at::stack(rows);
    };
    // From 250 on the cache is doubled on the way: the graph is recorded anew.
    const at::Tensor expected = decode(cpu, 250, 262, -1);
    EXPECT_LE(distance(decode(model, 250, 262, -1), expected), tolerance(compute)) << c10::toString(compute);
    const at::Tensor changed = decode(model, 250, 262, 254);
    EXPECT_GT(distance(changed.slice(0, 5), expected.slice(0, 5)), 4 * tolerance(compute));
    EXPECT_LE(distance(changed.slice(0, 0, 5), expected.slice(0, 0, 5)), tolerance(compute));
  }
}

TEST(Accelerator, DecodesToTheContextsEnd) {
  const c10::Device device = test_device();
  const c10::AutoGradMode no_gradients(false);
  model::LlamaConfig config = tiny_config();
  config.context_length = 300;
  Llama model = tiny_model(device, at::kBFloat16, {}, config);
  for (const int64_t prompt : {4, 160, 290}) {
    generate::Decoder decoder(model);
    const std::vector<int64_t> ids = tiny_example(3, prompt).input_ids;
    decoder.next(ids);
    for (int64_t i = prompt; i < 300; ++i)
      EXPECT_TRUE(decoder.next({i % kTinyVocab}).isfinite().all().item<bool>()) << i;
    EXPECT_THROW(decoder.next({1}), UserError);
  }
}

TEST(Accelerator, TheFusedOptimizerCountsAsAChange) {
  const c10::Device device = test_device();
  const at::Tensor value = at::ones({4}, at::TensorOptions(device)).requires_grad_(true);
  train::AdamW optimizer({{"value", value}}, {});
  value.mutable_grad() = at::ones({4}, at::TensorOptions(device));
  const auto before = value._version();
  optimizer.step(0.1);
  EXPECT_GT(value._version(), before);
  EXPECT_NEAR(value[0].item<double>(), 0.9, 1e-5);  // Adam's first step is the rate
}

TEST(Accelerator, ShapesThatItsKernelsLackAreNamed) {
  const c10::Device device = test_device();
  const TinyOptions options{.group_size = 16};
  try {
    tiny_model(device, at::kFloat, options);
    FAIL() << "groups of 16 have no kernel";
  } catch (const UserError& error) {
    EXPECT_NE(std::string(error.what()).find("model.layers.0.self_attn.q_proj: 4 bits with groups of 16"),
              std::string::npos)
        << error.what();
  }
}

}  // namespace
}  // namespace qalora::test
