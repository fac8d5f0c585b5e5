// How far two models are apart on the same tokens.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>

#include "qalora/eval/perplexity.h"
#include "qalora/model/llama.h"

namespace qalora::eval {

struct CompareResult {
  double kl_mean = 0, kl_max = 0;  // KL(model || other) in nats, over positions
  double top1_agreement = 0;       // share of positions whose most likely token is the same
  double max_logit_difference = 0;
  double nll = 0, other_nll = 0;  // mean, nats
  int64_t tokens = 0;             // predicted positions
  double seconds = 0;
};

// Both models read the same batches; logits exist a chunk at a time. DataError when the vocabularies differ in size.
CompareResult compare_models(model::Llama& model, model::Llama& other, const TokenBlocks& blocks, int64_t batch_tokens);

nlohmann::json to_json(const CompareResult& result);

}  // namespace qalora::eval
