#include "qalora/eval/mmlu.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <map>

#include "qalora/core/error.h"
#include "qalora/core/signals.h"
#include "qalora/eval/continuation.h"
#include "qalora/eval/scorer.h"

namespace qalora::eval {
namespace {

// The length at which QLoRA's callback cuts a prompt (mmlu_source_max_len).
constexpr int64_t kQloraPromptTokens = 2048;

const std::vector<std::string>& letter_texts() {
  static const std::vector<std::string> texts = {" A", " B", " C", " D"};
  return texts;
}

// The letters as they follow a prompt, looked up once for every token a prompt ends with: what follows is tokenised by what
// stands directly before it, and all prompts end in "Answer:".
class Letters {
 public:
  explicit Letters(const text::Tokenizer& tokenizer) : tokenizer_(tokenizer) {}

  const std::vector<std::vector<int64_t>>& after(const std::vector<int64_t>& ids, const std::string& prompt,
                                                 const std::string& where) {
    const auto found = tails_.find(ids.back());
    if (found != tails_.end()) return found->second;
    return tails_[ids.back()] = encode_continuations(tokenizer_, prompt, letter_texts(), where).tails;
  }

 private:
  const text::Tokenizer& tokenizer_;
  std::map<int64_t, std::vector<std::vector<int64_t>>> tails_;
};

std::vector<int64_t> single_tokens(const std::vector<std::vector<int64_t>>& tails, Protocol protocol, const std::string& where) {
  std::vector<int64_t> ids;
  for (size_t i = 0; i < tails.size(); ++i) {
    QALORA_REQUIRE(tails[i].size() == 1, DataError, where, ": --protocol ", protocol_name(protocol),
                   " compares one token a letter, but "
                   "this tokenizer writes '",
                   letter_texts()[i], "' with ", tails[i].size(), "; use --protocol lm-eval");
    QALORA_REQUIRE(std::find(ids.begin(), ids.end(), tails[i][0]) == ids.end(), DataError, where, ": two letters share token ",
                   tails[i][0], ", so their scores could not differ; the tokenizer does not fit --protocol ",
                   protocol_name(protocol));
    ids.push_back(tails[i][0]);
  }
  return ids;
}

struct Prepared {
  std::vector<Continuations> prompts;  // one an answer; tails: the letters
  MmluResult result;
};

// Encodes a question as its protocol asks. Too long: hendrycks drops the last worked example and tries again, qlora cuts the
// end, question and all; lm-eval's cut happens when it is scored.
Continuations prepare(const text::Tokenizer& tokenizer, Letters& letters, const MmluSubject& subject,
                      const MmluQuestion& question, Protocol protocol, int64_t context_length, MmluAnswer& answer) {
  size_t shots = subject.examples.size();
  std::string prompt = mmlu_prompt(subject, question, shots);
  Continuations out;
  out.where = question.where;
  out.context = tokenizer.encode(prompt, {.add_bos = tokenizer.adds_bos()});
  if (protocol == Protocol::kHendrycks) {
    while (static_cast<int64_t>(out.context.size()) > context_length) {
      QALORA_REQUIRE(shots > 0, DataError, question.where, ": subject '", subject.name, "', row ", question.index,
                     ": the question alone does not fit: ", out.context.size(), " tokens, and the model's context is ",
                     context_length, "; use --protocol lm-eval, which cuts such prompts on the left");
      prompt = mmlu_prompt(subject, question, --shots);
      out.context = tokenizer.encode(prompt, {.add_bos = tokenizer.adds_bos()});
    }
    answer.dropped_shots = static_cast<int64_t>(subject.examples.size() - shots);
  }
  answer.shots = static_cast<int64_t>(shots) + question.own_shots;
  QALORA_REQUIRE(!out.context.empty(), DataError, question.where, ": the prompt is empty");
  out.tails = letters.after(out.context, prompt, question.where);
  if (protocol == Protocol::kQlora) {
    const size_t limit = static_cast<size_t>(std::min(kQloraPromptTokens, context_length));
    answer.cut_tokens = static_cast<int64_t>(out.context.size() - std::min(out.context.size(), limit));
    out.context.resize(std::min(out.context.size(), limit));
  }
  answer.prompt_tokens = static_cast<int64_t>(out.context.size());
  return out;
}

Prepared prepare_all(const model::Llama& model, const text::Tokenizer& tokenizer, const MmluSource& source) {
  const std::vector<MmluSubject> subjects = read_mmlu(source);
  Prepared out;
  out.result.protocol = source.protocol;
  Letters letters(tokenizer);
  for (const auto& subject : subjects) {
    throw_if_stopped();
    out.result.shots = std::max(out.result.shots, static_cast<int64_t>(subject.examples.size()));
    for (const auto& question : subject.questions) {
      MmluAnswer answer;
      answer.subject = out.result.subjects.size();
      answer.index = question.index;
      answer.answer = question.answer;
      out.prompts.push_back(prepare(tokenizer, letters, subject, question, source.protocol, model.config.context_length, answer));
      out.result.shots = std::max(out.result.shots, question.own_shots);
      out.result.answers.push_back(answer);
    }
    out.result.subjects.push_back(subject.name);
  }
  return out;
}

// The logits of the four letters at the last position of each prompt.
void score_letters(model::Llama& model, Prepared& prepared, int64_t batch_tokens) {
  std::vector<ScoreRequest> requests;
  std::vector<std::vector<int64_t>> ids;
  for (auto& prompt : prepared.prompts) {
    ids.push_back(single_tokens(prompt.tails, prepared.result.protocol, prompt.where));
    const int64_t last = static_cast<int64_t>(prompt.context.size()) - 1;
    requests.push_back({std::move(prompt.context), last});
  }
  run_requests(model, requests, batch_tokens, "mmlu", [&](size_t index, const at::Tensor& hidden) {
    const at::Tensor logits = padded_logits(model, hidden)[0].to(at::kCPU);  // [vocab] f32
    for (size_t i = 0; i < 4; ++i) prepared.result.answers[index].scores[i] = logits[ids[index][i]].item<float>();
  });
}

void score_likelihoods(model::Llama& model, Prepared& prepared, int64_t batch_tokens) {
  const auto scores = score_continuations(model, prepared.prompts, batch_tokens, "mmlu");
  for (size_t i = 0; i < scores.size(); ++i) {
    auto& answer = prepared.result.answers[i];
    std::copy(scores[i].log_likelihoods.begin(), scores[i].log_likelihoods.end(), answer.scores.begin());
    answer.prompt_tokens = scores[i].prompt_tokens;
    answer.cut_tokens = scores[i].cut_tokens;
  }
}

}  // namespace

MmluResult run_mmlu(model::Llama& model, const text::Tokenizer& tokenizer, const MmluSource& source, int64_t batch_tokens) {
  Prepared prepared = prepare_all(model, tokenizer, source);
  const auto start = std::chrono::steady_clock::now();
  if (source.protocol == Protocol::kLmEval) {
    score_likelihoods(model, prepared, batch_tokens);
  } else {
    score_letters(model, prepared, batch_tokens);
  }
  MmluResult& result = prepared.result;
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  for (size_t i = 0; i < result.answers.size(); ++i) {
    auto& answer = result.answers[i];
    for (double score : answer.scores) {
      QALORA_REQUIRE(std::isfinite(score), DataError, prepared.prompts[i].where, ": the model scores an answer with ", score,
                     ": its weights or activations are not finite; check the checkpoint, or use --dtype float32");
    }
    answer.prediction = static_cast<int>(std::max_element(answer.scores.begin(), answer.scores.end()) - answer.scores.begin());
    result.tokens += answer.prompt_tokens;
    if (answer.cut_tokens > 0 || answer.dropped_shots > 0) ++result.cut_prompts;
  }
  return result;
}

}  // namespace qalora::eval
