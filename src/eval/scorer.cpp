#include "qalora/eval/scorer.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "qalora/core/checked.h"
#include "qalora/core/error.h"
#include "qalora/core/progress.h"
#include "qalora/core/signals.h"

namespace qalora::eval {
namespace {

constexpr int64_t kRowMultiple = 16;

int64_t round_up(int64_t count) { return ceil_div(count, kRowMultiple) * kRowMultiple; }

int64_t padded_length(const ScoreRequest& request, int64_t context_length) {
  return std::min(round_up(static_cast<int64_t>(request.ids.size())), context_length);
}

void check_request(const ScoreRequest& request, const model::LlamaConfig& config) {
  const int64_t length = static_cast<int64_t>(request.ids.size());
  QALORA_CHECK(length > 0 && request.first >= 0 && request.first < length, "request of ", length, " tokens from ",
               request.first);
  QALORA_REQUIRE(length <= config.context_length, UserError, "a sequence of ", length,
                 " tokens does not fit the model's context of ", config.context_length, " tokens");
  for (size_t i = 0; i < request.ids.size(); ++i) {
    QALORA_REQUIRE(request.ids[i] >= 0 && request.ids[i] < config.vocab_size, DataError, "token id ", request.ids[i],
                   " at position ", i, " is outside the model's vocabulary of ", config.vocab_size,
                   ": the tokenizer does not belong to this model");
  }
}

// Rows of one padded length as the model takes them. Rows of zeros are added at the end until the token count is a
// multiple of 16; that happens only where the context length itself is not one.
text::Batch make_batch(const std::vector<ScoreRequest>& requests, const std::vector<size_t>& batch, int64_t length) {
  int64_t rows = static_cast<int64_t>(batch.size());
  while (rows * length % kRowMultiple != 0) ++rows;
  text::Batch out;
  out.input_ids = at::zeros({rows, length}, at::kLong);
  out.targets = at::full({rows, length}, text::kIgnore, at::kLong);
  out.positions = at::arange(length, at::kLong).expand({rows, length}).contiguous();
  int64_t* ids = out.input_ids.data_ptr<int64_t>();
  for (size_t row = 0; row < batch.size(); ++row) {
    const auto& from = requests[batch[row]].ids;
    std::copy(from.begin(), from.end(), ids + static_cast<int64_t>(row) * length);
    out.real_tokens += static_cast<int64_t>(from.size());
  }
  for (int64_t row = 0; row < rows; ++row) out.segments.emplace_back(row * length, (row + 1) * length);
  return out;
}

}  // namespace

std::vector<std::vector<size_t>> plan_batches(const std::vector<ScoreRequest>& requests, int64_t batch_tokens,
                                              int64_t context_length) {
  std::vector<size_t> order(requests.size());
  std::iota(order.begin(), order.end(), size_t{0});
  // Longest first: what needs the most memory runs at once, not after an hour.
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return requests[a].ids.size() > requests[b].ids.size(); });
  std::vector<std::vector<size_t>> batches;
  int64_t length = 0;
  for (size_t index : order) {
    const int64_t needed = padded_length(requests[index], context_length);
    if (batches.empty() || needed != length ||
        static_cast<int64_t>(batches.back().size() + 1) * length > batch_tokens) {
      batches.emplace_back();
      length = needed;
    }
    batches.back().push_back(index);
  }
  return batches;
}

at::Tensor run_batch(model::Llama& model, const std::vector<ScoreRequest>& requests, const std::vector<size_t>& batch) {
  at::NoGradGuard no_grad;
  QALORA_CHECK(!batch.empty(), "an empty batch");
  for (size_t index : batch) check_request(requests[index], model.config);
  const int64_t length = padded_length(requests[batch[0]], model.config.context_length);
  text::Batch input = make_batch(requests, batch, length);
  const at::Tensor hidden = model.forward(input);  // [rows * length, hidden] f32
  return hidden.view({input.rows(), length, hidden.size(-1)}).narrow(0, 0, static_cast<int64_t>(batch.size()));
}

void run_requests(model::Llama& model, const std::vector<ScoreRequest>& requests, int64_t batch_tokens,
                  const char* what, const std::function<void(size_t, const at::Tensor&)>& result) {
  at::NoGradGuard no_grad;
  int64_t total = 0;
  for (const auto& request : requests) {
    check_request(request, model.config);
    total += static_cast<int64_t>(request.ids.size());
  }
  Progress progress(what, total, "tokens");
  for (const auto& batch : plan_batches(requests, batch_tokens, model.config.context_length)) {
    throw_if_stopped();
    const at::Tensor hidden = run_batch(model, requests, batch);
    int64_t tokens = 0;
    for (size_t row = 0; row < batch.size(); ++row) {
      const auto& request = requests[batch[row]];
      const int64_t length = static_cast<int64_t>(request.ids.size());
      result(batch[row], hidden[static_cast<int64_t>(row)].narrow(0, request.first, length - request.first));
      tokens += length;
    }
    progress.add(tokens);
  }
  progress.finish();
}

int64_t logits_chunk(const model::Llama& model) {
  constexpr int64_t kElements = int64_t{16} << 20;
  return std::max(kRowMultiple, kElements / model.config.vocab_size / kRowMultiple * kRowMultiple);
}

at::Tensor padded_logits(const model::Llama& model, const at::Tensor& hidden) {
  at::NoGradGuard no_grad;
  const int64_t rows = hidden.size(0);
  const int64_t padded = round_up(rows);
  if (padded == rows) return model.logits(hidden.contiguous());
  at::Tensor filled = at::zeros({padded, hidden.size(1)}, hidden.options());
  filled.narrow(0, 0, rows).copy_(hidden);
  return model.logits(filled).narrow(0, 0, rows);
}

std::vector<double> log_likelihoods(const model::Llama& model, const at::Tensor& hidden,
                                    std::span<const int64_t> targets) {
  const int64_t rows = hidden.size(0);
  QALORA_CHECK(rows == static_cast<int64_t>(targets.size()), rows, " states for ", targets.size(), " targets");
  std::vector<double> out;
  out.reserve(targets.size());
  const int64_t chunk = logits_chunk(model);
  for (int64_t begin = 0; begin < rows; begin += chunk) {
    const int64_t count = std::min(chunk, rows - begin);
    const at::Tensor logits = padded_logits(model, hidden.narrow(0, begin, count));  // [count, vocab] f32
    const at::Tensor wanted = at::tensor(at::IntArrayRef(targets.data() + begin, count), at::kLong).to(logits.device());
    const at::Tensor values =
        at::log_softmax(logits, -1).gather(1, wanted.unsqueeze(1)).squeeze(1).to(at::kCPU).contiguous();
    const float* data = values.data_ptr<float>();
    out.insert(out.end(), data, data + count);
  }
  for (size_t i = 0; i < out.size(); ++i) {
    QALORA_REQUIRE(
        std::isfinite(out[i]), DataError, "the model gives token ", targets[i], " a log-likelihood of ", out[i],
        ": its weights or activations are not finite; check the checkpoint with 'qalora inspect', or use --dtype float32");
  }
  return out;
}

}  // namespace qalora::eval
