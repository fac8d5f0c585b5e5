#include "qalora/eval/merge_proof.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cmath>

#include "qalora/core/error.h"
#include "qalora/core/log.h"
#include "qalora/eval/scorer.h"
#include "qalora/model/load.h"
#include "qalora/quant/merge.h"
#include "qalora/tensor/random.h"
#include "qalora/text/dataset.h"
#include "qalora/text/template.h"
#include "qalora/text/tokenizer.h"

namespace qalora::eval {
namespace {

constexpr size_t kSequences = 4;
constexpr int64_t kLength = 128;  // tokens of a sequence at most

constexpr const char* kText =
    "A river that leaves the mountains carries stones, then sand, and at last only mud. Where it slows down it drops what it can no "
    "longer hold, and over the centuries it builds a plain. Farmers settle there because the soil is deep; they count the floods, "
    "name the fields, and quarrel about bridges. In 1847 the village had 312 people, two mills and a school. Question: what does a "
    "slow river leave behind? Answer: the finest part of its load.";

bool usable(const std::vector<int64_t>& ids, const model::LlamaConfig& config) {
  return ids.size() >= 2 &&
         std::all_of(ids.begin(), ids.end(), [&](int64_t id) { return id >= 0 && id < config.vocab_size; });
}

// The first records of a data set as ids.
ProofTokens record_tokens(const std::string& path, const text::Tokenizer* tokenizer, const model::LlamaConfig& config,
                          int64_t length) {
  ProofTokens tokens;
  const text::Dataset dataset(path, text::DataFormat::kAuto, /*skip_bad_records=*/true);
  text::ExampleOptions options;
  options.sequence_length = length;
  for (int64_t i = 0; i < dataset.size() && tokens.sequences.size() < kSequences; ++i) {
    const text::Record record = dataset.record(i);
    if (tokenizer == nullptr && record.input_ids.empty()) break;
    std::vector<int64_t> ids =
        record.input_ids.empty() ? text::make_example(*tokenizer, record, options).input_ids : record.input_ids;
    ids.resize(std::min<size_t>(ids.size(), static_cast<size_t>(length)));
    if (usable(ids, config)) tokens.sequences.push_back(std::move(ids));
  }
  QALORA_REQUIRE(!tokens.sequences.empty(), DataError, path, ": no record in it can serve the proof",
                 tokenizer == nullptr ? ": the model has no tokenizer" : "");
  tokens.source = message(tokens.sequences.size(), " records of ", path);
  return tokens;
}

ProofTokens random_tokens(const model::LlamaConfig& config, int64_t length) {
  ProofTokens tokens;
  for (size_t row = 0; row < kSequences; ++row) {
    tensor::RandomStream stream(0, "merge proof tokens", row);
    std::vector<int64_t> ids(static_cast<size_t>(std::min<int64_t>(length, 64)));
    for (int64_t& id : ids) id = static_cast<int64_t>(stream.below(static_cast<uint64_t>(config.vocab_size)));
    tokens.sequences.push_back(std::move(ids));
  }
  tokens.source = "pseudo-random ids";
  return tokens;
}

// -> final states of all tokens [tokens, hidden] f32
at::Tensor run(model::Llama& model, const ProofTokens& tokens, const char* what) {
  std::vector<ScoreRequest> requests;
  for (const auto& ids : tokens.sequences) requests.push_back({ids, 0});
  std::vector<at::Tensor> states(requests.size());
  run_requests(model, requests, kDefaultBatchTokens, what,
               [&](size_t i, const at::Tensor& hidden) { states[i] = hidden.clone(); });
  return at::cat(states);
}

// Largest |logits(a) - logits(b)|. a, b: [tokens, hidden] f32
double logit_distance(const model::Llama& model, const at::Tensor& a, const at::Tensor& b) {
  double largest = 0;
  const int64_t chunk = logits_chunk(model);
  for (int64_t begin = 0; begin < a.size(0); begin += chunk) {
    const int64_t count = std::min(chunk, a.size(0) - begin);
    const at::Tensor first = padded_logits(model, a.narrow(0, begin, count)),
                     second = padded_logits(model, b.narrow(0, begin, count));
    const double distance = (first - second).abs().max().item<double>();
    if (!(distance <= largest)) largest = distance;  // keeps NaN
    if (std::isnan(largest)) break;
  }
  return largest;
}

// The adapter's modules of a model, with their offsets and what the adapter adds to them.
struct MovedOffsets {
  model::Linear* linear;
  at::Tensor offsets, change;  // [out_features, groups] f32
};

std::vector<MovedOffsets> moved_offsets(model::Llama& model, const io::AdapterFile& adapter) {
  std::vector<MovedOffsets> result;
  for (model::Linear* linear : model.linears()) {
    const auto found = adapter.modules.find(linear->module());
    if (found == adapter.modules.end()) continue;
    const quant::PackedWeight& weight = linear->packed();
    io::AdapterConfig config = adapter.config;
    config.group_size = weight.group_size;  // the merge has compared them
    result.push_back(
        {linear, weight.offsets,
         quant::offset_change(linear->module(), config, found->second, weight.in_features, weight.group_size)});
  }
  return result;
}

void replace_offsets(model::Linear& linear, const at::Tensor& offsets) {
  if (const quant::TiledWeight* tiled = linear.tiled()) {
    quant::TiledWeight moved = *tiled;
    moved.offsets = quant::to_lane_order(moved, offsets);
    return linear.set_tiled(std::move(moved));
  }
  quant::PackedWeight weight = linear.packed();
  weight.offsets = offsets;
  weight.input_order = linear.input_order();
  model::Linear changed(linear.module(), std::move(weight));
  changed.bias = linear.bias;
  changed.adapter = linear.adapter;
  linear = std::move(changed);
}

// Moves every offset of the adapter's modules as the header says, each draw another way.
void shake_offsets(const std::vector<MovedOffsets>& modules, int draw) {
  for (const auto& [linear, offsets, change] : modules) {
    tensor::RandomStream stream(0, "merge proof " + linear->module(), static_cast<uint64_t>(draw));
    const at::Tensor sign = stream.uniform_tensor(offsets.sizes(), -1, 1).sign();
    replace_offsets(*linear, offsets + sign * (offsets.abs() + change.abs()) * std::ldexp(1.0, -23));
  }
}

}  // namespace

ProofTokens proof_tokens_of(const fs::path& model, const model::LlamaConfig& config, const std::string& data) {
  std::optional<text::Tokenizer> tokenizer;
  if (text::Tokenizer::exists(model)) tokenizer.emplace(model);
  return record_tokens(data, tokenizer ? &*tokenizer : nullptr, config, std::min(kLength, config.context_length));
}

ProofTokens proof_tokens(const fs::path& model, const model::LlamaConfig& config, const std::string& training_data) {
  const int64_t length = std::min(kLength, config.context_length);
  std::error_code ignored;
  if (!training_data.empty() && fs::is_regular_file(training_data, ignored)) {
    try {
      return proof_tokens_of(model, config, training_data);
    } catch (const Error& error) {
      log::verbose(message("the proof does not use the training data: ", error.what()));
    }
  }
  std::optional<text::Tokenizer> tokenizer;
  if (text::Tokenizer::exists(model)) tokenizer.emplace(model);
  if (!tokenizer) return random_tokens(config, length);
  std::vector<int64_t> ids = tokenizer->encode(kText, {.add_bos = true});
  ids.resize(std::min<size_t>(ids.size(), static_cast<size_t>(length)));
  if (!usable(ids, config)) return random_tokens(config, length);
  return {{std::move(ids)}, "built-in text"};
}

MergeProof prove_merge(const fs::path& base, const io::AdapterFile& adapter, const fs::path& merged,
                       const ProofTokens& tokens, c10::Device device) {
  at::NoGradGuard no_grad;
  QALORA_CHECK(!tokens.sequences.empty(), "no tokens to prove a merge on");
  at::Tensor plain, adapted;
  std::vector<at::Tensor> shaken;
  {
    model::Llama model = model::load_model(base, {});
    const std::vector<MovedOffsets> modules = moved_offsets(model, adapter);
    model.to(device);
    plain = run(model, tokens, "proof: base");
    // The merge has compared the bases.
    model::attach_adapter(model, adapter, {adapter.config.base_fingerprint, adapter.config.base_state_fingerprint});
    for (model::Linear* linear : model.linears()) {
      if (linear->adapter) linear->adapter->beside = true;
    }
    adapted = run(model, tokens, "proof: base + adapter");
    for (int draw = 0; draw < kDraws; ++draw) {
      shake_offsets(modules, draw);
      shaken.push_back(run(model, tokens, "proof: rounding"));
    }
  }
  model::LoadOptions there;
  there.device = device;
  model::Llama model = model::load_model(merged, there);
  const at::Tensor result = run(model, tokens, "proof: merged");

  MergeProof proof;
  proof.tokens = adapted.size(0);
  proof.effect = logit_distance(model, adapted, plain);
  proof.max_logit_difference = logit_distance(model, adapted, result);
  for (const at::Tensor& draw : shaken)
    proof.tolerance = std::max(proof.tolerance, kMargin * logit_distance(model, adapted, draw));
  return proof;
}

}  // namespace qalora::eval
