#include "qalora/generate/generator.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <chrono>

#include "qalora/core/error.h"
#include "qalora/core/format.h"
#include "qalora/core/signals.h"
#include "qalora/generate/decoder.h"

namespace qalora::generate {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

}  // namespace

Generation generate(model::Llama& model, const std::vector<int64_t>& prompt, const GenerateOptions& options,
                    const std::function<void(int64_t)>& on_token) {
  at::NoGradGuard no_grad;
  check_sampler(options.sampler);
  const int64_t context = model.config.context_length;
  const int64_t length = static_cast<int64_t>(prompt.size());
  QALORA_REQUIRE(options.max_tokens > 0, UserError, "--max-tokens: expected 1 or more, got ", options.max_tokens);
  QALORA_REQUIRE(length > 0, UserError, "the prompt has no tokens");
  QALORA_REQUIRE(length < context, UserError, "the prompt has ", length, " tokens, and the model's context of ",
                 context, " leaves no room for an answer; shorten it");
  for (int64_t id : prompt) {
    QALORA_REQUIRE(id >= 0 && id < model.config.vocab_size, DataError, "token id ", id,
                   " is outside the model's vocabulary of ", model.config.vocab_size,
                   ": the tokenizer does not belong to this model");
  }
  Generation out;
  out.prompt_tokens = length;
  Decoder decoder(model);
  auto start = Clock::now();
  at::Tensor logits = decoder.next(prompt).to(at::kCPU);  // a device is waited for: this is the prompt's time
  out.prefill_seconds = seconds_since(start);
  start = Clock::now();
  const int64_t room = std::min(options.max_tokens, context - length);
  while (true) {
    throw_if_stopped();
    const int64_t id = sample(logits, options.sampler, static_cast<uint64_t>(out.ids.size()));
    out.stopped = std::find(options.stop_ids.begin(), options.stop_ids.end(), id) != options.stop_ids.end();
    if (out.stopped) break;
    out.ids.push_back(id);
    on_token(id);
    if (static_cast<int64_t>(out.ids.size()) == room) break;
    logits = decoder.next({id});
    ++out.decode_steps;
  }
  out.decode_seconds = seconds_since(start);
  return out;
}

std::string TextStream::push(int64_t id) {
  std::string piece = tokenizer_.decode_next(ids_, id);
  ids_.push_back(id);
  text_ += piece;
  return piece;
}

std::string TextStream::finish() {
  const std::string whole = tokenizer_.decode(ids_), shown = before_ + text_;
  std::string rest;
  if (whole.size() > shown.size() && whole.starts_with(shown)) rest = whole.substr(shown.size());
  if (!valid_utf8(rest)) rest = "\xEF\xBF\xBD";
  text_ += rest;
  return rest;
}

}  // namespace qalora::generate
