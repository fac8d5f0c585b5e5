#include "qalora/eval/continuation.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "qalora/core/error.h"
#include "qalora/eval/blanks.h"
#include "qalora/eval/scorer.h"

namespace qalora::eval {
namespace {

// Which tails of which question a request answers.
struct Owner {
  size_t question;
  size_t tail;
  bool all;  // every tail of the question: they are one token each
};

}  // namespace

Continuations encode_continuations(const text::Tokenizer& tokenizer, std::string_view context,
                                   const std::vector<std::string>& texts, const std::string& where) {
  const text::Tokenizer::EncodeOptions options{.add_bos = tokenizer.adds_bos()};
  const std::string kept(context.substr(0, context.size() - trailing_blanks(context)));
  const std::string moved(context.substr(kept.size()));

  Continuations out;
  out.where = where;
  out.context = tokenizer.encode(kept, options);
  if (kept.empty()) {
    // Nothing to condition on: the model still needs one token in front of the first that is scored.
    const int64_t start = tokenizer.bos_id() >= 0 ? tokenizer.bos_id() : tokenizer.eos_id();
    QALORA_REQUIRE(start >= 0, DataError, where,
                   ": the context is empty and the tokenizer has no token to start from; give a context");
    out.context = {start};
  }
  for (const auto& text : texts) {
    const auto whole = tokenizer.encode(kept + moved + text,
                                        {.add_bos = kept.empty() ? tokenizer.bos_id() >= 0 : tokenizer.adds_bos()});
    const bool bare = kept.empty() && tokenizer.bos_id() < 0;  // `whole` has no start token of its own
    const size_t skip = bare ? 0 : out.context.size();
    QALORA_REQUIRE(bare || (whole.size() >= skip && std::equal(out.context.begin(), out.context.end(), whole.begin())),
                   DataError, where, ": the tokens of the context change when '", text,
                   "' follows it, so its likelihood is not defined; let the context end "
                   "where a word ends and the answer begin with a blank");
    QALORA_REQUIRE(whole.size() > skip, DataError, where, ": '", text, "' has no tokens of its own");
    out.tails.emplace_back(whole.begin() + static_cast<int64_t>(skip), whole.end());
  }
  return out;
}

std::vector<ContinuationScores> score_continuations(model::Llama& model, const std::vector<Continuations>& questions,
                                                    int64_t batch_tokens, const char* what) {
  const int64_t limit = model.config.context_length;
  std::vector<ContinuationScores> scores(questions.size());
  std::vector<ScoreRequest> requests;
  std::vector<Owner> owners;
  for (size_t q = 0; q < questions.size(); ++q) {
    const auto& question = questions[q];
    scores[q].log_likelihoods.resize(question.tails.size());
    const bool shared =
        std::all_of(question.tails.begin(), question.tails.end(), [](const auto& tail) { return tail.size() == 1; });
    for (size_t t = 0; t < (shared ? 1 : question.tails.size()); ++t) {
      const auto& tail = question.tails[t];
      const int64_t length = static_cast<int64_t>(tail.size());
      QALORA_REQUIRE(length <= limit, DataError, question.where, ": an answer of ", length,
                     " tokens does not fit the model's context of ", limit, " tokens");
      // The last token is only predicted, never read.
      std::vector<int64_t> ids(question.context);
      ids.insert(ids.end(), tail.begin(), tail.end() - 1);
      const int64_t cut = std::max<int64_t>(0, static_cast<int64_t>(ids.size()) - limit);
      ids.erase(ids.begin(), ids.begin() + cut);
      const int64_t first = static_cast<int64_t>(ids.size()) - length;
      if (cut >= scores[q].cut_tokens) {
        scores[q].cut_tokens = cut;
        scores[q].prompt_tokens = static_cast<int64_t>(question.context.size()) - cut;
      }
      requests.push_back({std::move(ids), first});
      owners.push_back({q, t, shared});
    }
  }
  run_requests(model, requests, batch_tokens, what, [&](size_t index, const at::Tensor& hidden) {
    const Owner& owner = owners[index];
    const auto& tails = questions[owner.question].tails;
    auto& out = scores[owner.question].log_likelihoods;
    if (!owner.all) {
      double sum = 0;
      for (double value : log_likelihoods(model, hidden, tails[owner.tail])) sum += value;
      out[owner.tail] = sum;
      return;
    }
    std::vector<int64_t> targets;
    for (const auto& tail : tails) targets.push_back(tail[0]);
    out = log_likelihoods(model, hidden.expand({static_cast<int64_t>(targets.size()), hidden.size(1)}), targets);
  });
  return scores;
}

}  // namespace qalora::eval
