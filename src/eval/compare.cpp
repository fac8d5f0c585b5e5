#include "qalora/eval/compare.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <nlohmann/json.hpp>

#include "qalora/core/error.h"
#include "qalora/core/progress.h"
#include "qalora/core/signals.h"
#include "qalora/eval/scorer.h"

namespace qalora::eval {
namespace {

// Sums over positions; means are taken at the end.
struct Sums {
  double kl = 0, kl_max = 0, nll = 0, other_nll = 0, logit_difference = 0;
  int64_t agreements = 0, tokens = 0;
};

// logits, other: [n, vocab] f32 on one device; targets: [n] i64
void add_positions(Sums& sums, const at::Tensor& logits, const at::Tensor& other, const at::Tensor& targets) {
  // In double: a KL of 1e-7 between nearly equal models would drown in the rounding of an f32 softmax.
  const at::Tensor log_p = at::log_softmax(logits.to(at::kDouble), -1);
  const at::Tensor log_q = at::log_softmax(other.to(at::kDouble), -1);
  const at::Tensor kl = (log_p.exp() * (log_p - log_q)).sum(-1).clamp_min(0);  // [n]; below 0 only by rounding
  const at::Tensor wanted = targets.unsqueeze(1);
  sums.kl += kl.sum().item<double>();
  sums.kl_max = std::max(sums.kl_max, kl.max().item<double>());
  sums.nll -= log_p.gather(1, wanted).sum().item<double>();
  sums.other_nll -= log_q.gather(1, wanted).sum().item<double>();
  sums.agreements += (logits.argmax(-1) == other.argmax(-1)).sum().item<int64_t>();
  sums.logit_difference = std::max(sums.logit_difference, (logits - other).abs().max().item<double>());
  sums.tokens += targets.size(0);
  QALORA_REQUIRE(std::isfinite(sums.kl + sums.nll + sums.other_nll), DataError,
                 "a model's logits are not finite; check both checkpoints, or use --dtype float32");
}

}  // namespace

CompareResult compare_models(model::Llama& model, model::Llama& other, const TokenBlocks& blocks,
                             int64_t batch_tokens) {
  at::NoGradGuard no_grad;
  QALORA_REQUIRE(model.config.vocab_size == other.config.vocab_size, DataError,
                 "the models cannot be compared: one has a vocabulary of ", model.config.vocab_size,
                 " tokens, the other of ", other.config.vocab_size);
  const auto start = std::chrono::steady_clock::now();
  std::vector<ScoreRequest> requests;
  int64_t total = 0;
  for (const auto& block : blocks.blocks) {
    requests.push_back({block, 0});
    total += static_cast<int64_t>(block.size()) - 1;
  }
  Sums sums;
  Progress progress("compare", total, "tokens");
  const int64_t context = std::min(model.config.context_length, other.config.context_length);
  const int64_t chunk = std::min<int64_t>(logits_chunk(model), 512);
  for (const auto& batch : plan_batches(requests, batch_tokens, context)) {
    throw_if_stopped();
    const at::Tensor hidden = run_batch(model, requests, batch), other_hidden = run_batch(other, requests, batch);
    for (size_t row = 0; row < batch.size(); ++row) {
      const auto& ids = requests[batch[row]].ids;
      const int64_t positions = static_cast<int64_t>(ids.size()) - 1;
      for (int64_t begin = 0; begin < positions; begin += chunk) {
        const int64_t count = std::min(chunk, positions - begin), at_row = static_cast<int64_t>(row);
        const at::Tensor logits = padded_logits(model, hidden[at_row].narrow(0, begin, count));
        const at::Tensor others =
            padded_logits(other, other_hidden[at_row].narrow(0, begin, count)).to(logits.device());
        const auto targets = at::tensor(at::IntArrayRef(ids.data() + begin + 1, static_cast<size_t>(count)), at::kLong);
        add_positions(sums, logits, others, targets.to(logits.device()));
      }
    }
    progress.update(sums.tokens);
  }
  progress.finish();
  const double tokens = static_cast<double>(sums.tokens);
  CompareResult result;
  result.kl_mean = sums.kl / tokens;
  result.kl_max = sums.kl_max;
  result.top1_agreement = static_cast<double>(sums.agreements) / tokens;
  result.max_logit_difference = sums.logit_difference;
  result.nll = sums.nll / tokens;
  result.other_nll = sums.other_nll / tokens;
  result.tokens = sums.tokens;
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return result;
}

nlohmann::json to_json(const CompareResult& result) {
  const auto perplexity = [](double nll) {
    const double value = std::exp(nll);
    return std::isfinite(value) ? nlohmann::json(value) : nlohmann::json();
  };
  return {{"kl_mean", result.kl_mean},
          {"kl_max", result.kl_max},
          {"top1_agreement", result.top1_agreement},
          {"max_logit_difference", result.max_logit_difference},
          {"perplexity", perplexity(result.nll)},
          {"other_perplexity", perplexity(result.other_nll)},
          {"tokens", result.tokens},
          {"seconds", result.seconds}};
}

}  // namespace qalora::eval
