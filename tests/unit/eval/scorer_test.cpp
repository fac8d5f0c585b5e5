#include "qalora/eval/scorer.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <set>

#include "qalora/core/error.h"
#include "unit/eval/tiny.h"

namespace qalora::eval {
namespace {

using test::random_ids;
using test::tiny_config;

std::vector<ScoreRequest> many_requests(int64_t longest) {
  std::vector<ScoreRequest> requests;
  tensor::RandomStream random(3, "lengths");
  for (uint64_t i = 0; i < 60; ++i) {
    const int64_t length = 2 + static_cast<int64_t>(random.below(static_cast<uint64_t>(longest - 1)));
    requests.push_back({random_ids(i, length), static_cast<int64_t>(random.below(static_cast<uint64_t>(length - 1)))});
  }
  return requests;
}

// The hidden states and the log-likelihoods of every request, one behind the other.
std::vector<double> score(model::Llama& model, const std::vector<ScoreRequest>& requests, int64_t batch_tokens) {
  std::vector<std::vector<double>> parts(requests.size());
  run_requests(model, requests, batch_tokens, "test", [&](size_t i, const at::Tensor& hidden) {
    const auto& request = requests[i];
    EXPECT_EQ(hidden.size(0), static_cast<int64_t>(request.ids.size()) - request.first);
    const std::vector<int64_t> targets(request.ids.begin() + request.first + 1, request.ids.end());
    parts[i] = log_likelihoods(model, hidden.narrow(0, 0, hidden.size(0) - 1), targets);
    const at::Tensor flat = hidden.contiguous().view({-1});
    for (int64_t k = 0; k < flat.numel(); ++k) parts[i].push_back(flat.data_ptr<float>()[k]);
  });
  std::vector<double> all;
  for (const auto& part : parts) all.insert(all.end(), part.begin(), part.end());
  return all;
}

TEST(Scorer, ScoresAreTheSameBitsWhateverTheBatch) {
  for (int64_t context : {128, 90}) {  // 90: a context that is no multiple of 16 needs filler rows
    model::Llama model = model::new_model(tiny_config(context), 1);
    const auto requests = many_requests(context);
    const auto alone = score(model, requests, 1);
    EXPECT_EQ(alone, score(model, requests, 300)) << context;
    EXPECT_EQ(alone, score(model, requests, 100000)) << context;
    // In another order and company.
    std::vector<ScoreRequest> fewer(requests.begin() + 20, requests.begin() + 40);
    const auto part = score(model, fewer, 100000);
    EXPECT_NE(std::search(alone.begin(), alone.end(), part.begin(), part.end()), alone.end()) << context;

    model::Llama changed = model::new_model(tiny_config(context), 2);
    EXPECT_NE(alone, score(changed, requests, 300));
  }
}

TEST(Scorer, PaddingDoesNotMatter) {
  model::Llama model = model::new_model(tiny_config(), 1);
  auto short_one = random_ids(5, 33);
  std::vector<ScoreRequest> requests = {{short_one, 0}, {random_ids(6, 48), 0}};
  const auto together = score(model, requests, 1000);
  const auto alone = score(model, {requests[0]}, 1000);
  EXPECT_TRUE(std::equal(alone.begin(), alone.end(), together.begin()));
  short_one.back() += short_one.back() == 96 ? -1 : 1;  // what is not padding does matter
  EXPECT_NE(alone, score(model, {{short_one, 0}}, 1000));
}

TEST(Scorer, BatchesHoldEveryRequestOnceLongestFirst) {
  const auto requests = many_requests(128);
  const auto batches = plan_batches(requests, 256, 128);
  std::set<size_t> seen;
  size_t longest = 1000;
  for (const auto& batch : batches) {
    const size_t padded = (requests[batch[0]].ids.size() + 15) / 16 * 16;
    EXPECT_LE(padded, longest);
    longest = padded;
    EXPECT_TRUE(batch.size() == 1 || batch.size() * padded <= 256);
    for (size_t i : batch) {
      EXPECT_TRUE(seen.insert(i).second);
      EXPECT_EQ((requests[i].ids.size() + 15) / 16 * 16, padded);
    }
  }
  EXPECT_EQ(seen.size(), requests.size());
}

TEST(Scorer, PaddedLogitsEqualTheModels) {
  model::Llama model = model::new_model(tiny_config(), 1);
  at::NoGradGuard no_grad;
  const at::Tensor hidden = tensor::RandomStream(1, "hidden").normal_tensor({75, 48}, 1.0);
  const at::Tensor all = padded_logits(model, hidden);
  for (int64_t count : {1, 3, 16, 17, 40}) {
    EXPECT_TRUE(at::equal(padded_logits(model, hidden.narrow(0, 30, count)), all.narrow(0, 30, count))) << count;
  }
  EXPECT_FALSE(at::equal(padded_logits(model, hidden.narrow(0, 29, 16)), all.narrow(0, 30, 16)));
  // f32 products of 48 terms of size about 0.5: a few ulps of their sum.
  EXPECT_TRUE(at::allclose(all, model.logits(hidden), 0, 1e-4));
}

TEST(Scorer, RefusesWhatTheModelCannotRead) {
  model::Llama model = model::new_model(tiny_config(), 1);
  const auto nothing = [](size_t, const at::Tensor&) {};
  try {
    run_requests(model, {{{1, 2, 97, 4}, 0}}, 100, "test", nothing);
    FAIL();
  } catch (const DataError& error) {
    EXPECT_NE(std::string(error.what()).find("token id 97 at position 2"), std::string::npos) << error.what();
  }
  try {
    run_requests(model, {{random_ids(1, 129), 0}}, 100, "test", nothing);
    FAIL();
  } catch (const UserError& error) {
    EXPECT_NE(std::string(error.what()).find("129"), std::string::npos) << error.what();
  }
}

TEST(Scorer, NonFiniteWeightsAreNotScores) {
  model::Llama model = model::new_model(tiny_config(), 1);
  at::NoGradGuard no_grad;
  model.final_norm[3] = std::numeric_limits<float>::quiet_NaN();
  const at::Tensor hidden = at::full({2, 48}, std::numeric_limits<float>::quiet_NaN());
  EXPECT_THROW(log_likelihoods(model, hidden, std::vector<int64_t>{1, 2}), DataError);
}

}  // namespace
}  // namespace qalora::eval
