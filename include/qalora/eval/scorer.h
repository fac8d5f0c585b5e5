// Log-likelihoods of tokens under a model, many sequences at a time, with the same result whatever the batch size.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "qalora/model/llama.h"

namespace qalora::eval {

inline constexpr int64_t kDefaultBatchTokens = 4096;

struct ScoreRequest {
  std::vector<int64_t> ids;  // the whole sequence
  int64_t first = 0;         // the first position whose hidden state is wanted (it predicts ids[first + 1])
};

// Calls result(i, hidden) for each request i, in an order of the scorer's choosing; hidden: [ids.size() - first,
// hidden] f32, the final-norm states of positions first .. end. Requests are sorted by length and put together up to
// `batch_tokens` padded tokens; token counts are padded to a multiple of 16 because matrix products of other counts may
// sum in another order.
void run_requests(model::Llama& model, const std::vector<ScoreRequest>& requests, int64_t batch_tokens,
                  const char* what, const std::function<void(size_t, const at::Tensor&)>& result);

// The two halves of run_requests, for callers that show a batch to several models. A batch is a list of request indices
// whose lengths round up to the same padded length, so that what a request's attention sees is a function of that
// request alone.
std::vector<std::vector<size_t>> plan_batches(const std::vector<ScoreRequest>& requests, int64_t batch_tokens,
                                              int64_t context_length);
// -> [batch.size(), padded length, hidden] f32
at::Tensor run_batch(model::Llama& model, const std::vector<ScoreRequest>& requests, const std::vector<size_t>& batch);

// Rows of hidden states that go through the head at a time: a multiple of 16 whose f32 logits take at most 64 MB or so.
int64_t logits_chunk(const model::Llama& model);
// hidden: [n, hidden] f32 -> [n, vocab] f32, computed for a multiple of 16 rows.
at::Tensor padded_logits(const model::Llama& model, const at::Tensor& hidden);
// log softmax(logits)[targets[i]] of row i, in f32 over the whole vocabulary. hidden: [n, hidden] f32, targets: [n].
// DataError where one is not finite.
std::vector<double> log_likelihoods(const model::Llama& model, const at::Tensor& hidden,
                                    std::span<const int64_t> targets);

}  // namespace qalora::eval
