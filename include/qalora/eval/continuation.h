// Log-likelihoods of texts that follow a context, as the lm-evaluation-harness defines them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "qalora/model/llama.h"
#include "qalora/text/tokenizer.h"

namespace qalora::eval {

// One context and the texts that may follow it, as ids.
struct Continuations {
  std::vector<int64_t> context;             // BOS included; never empty
  std::vector<std::vector<int64_t>> tails;  // none empty
  std::string where;                        // "file:line", for messages
};

// Context and context + text are encoded with the same options and the tail is what the second has more: looking a text
// up on its own would give LLaMA's tokenizer another first token. Blanks at the context's end move to the texts.
// DataError naming `where` when the context's ids are not a prefix.
Continuations encode_continuations(const text::Tokenizer& tokenizer, std::string_view context,
                                   const std::vector<std::string>& texts, const std::string& where);

struct ContinuationScores {
  std::vector<double> log_likelihoods;  // one a tail
  int64_t prompt_tokens = 0;            // of the context, as run
  int64_t cut_tokens = 0;  // taken off the context's left because it did not fit (the largest over the tails)
};

// Too long for the model: context + tail keep their last context_length + 1 tokens, as in the harness. One-token tails
// share one forward pass.
std::vector<ContinuationScores> score_continuations(model::Llama& model, const std::vector<Continuations>& questions,
                                                    int64_t batch_tokens, const char* what);

}  // namespace qalora::eval
