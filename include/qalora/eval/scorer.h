// Log-likelihoods of tokens under a model, many sequences at a time, with the same result whatever the batch size.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "qalora/model/llama.h"

namespace qalora::eval {

struct ScoreRequest {
  std::vector<int64_t> ids;  // the whole sequence
  int64_t first = 0;         // the first position whose hidden state is wanted (it predicts ids[first + 1])
};

// Calls result(i, hidden) for each request i, in an order of the scorer's choosing; hidden: [ids.size() - first, hidden] f32,
// the final-norm states of positions first .. end. Requests are sorted by length and put together up to `batch_tokens` padded
// tokens; token counts are padded to a multiple of 16 because matrix products of other counts may sum in another order.
void run_requests(model::Llama& model, const std::vector<ScoreRequest>& requests, int64_t batch_tokens, const char* what,
                  const std::function<void(size_t, const at::Tensor&)>& result);

}  // namespace qalora::eval
