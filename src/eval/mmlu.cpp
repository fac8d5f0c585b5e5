#include "qalora/eval/mmlu.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <map>
#include <string_view>
#include <utility>

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

// The letters as they follow a prompt, looked up once for every token a prompt ends with: what follows is tokenised by
// what stands directly before it, and all prompts end in "Answer:".
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

std::vector<int64_t> single_tokens(const std::vector<std::vector<int64_t>>& tails, Protocol protocol,
                                   const std::string& where) {
  std::vector<int64_t> ids;
  for (size_t i = 0; i < tails.size(); ++i) {
    QALORA_REQUIRE(tails[i].size() == 1, DataError, where, ": --protocol ", protocol_name(protocol),
                   " compares one token a letter, but "
                   "this tokenizer writes '",
                   letter_texts()[i], "' with ", tails[i].size(), "; use --protocol lm-eval");
    QALORA_REQUIRE(std::find(ids.begin(), ids.end(), tails[i][0]) == ids.end(), DataError, where,
                   ": two letters share token ", tails[i][0],
                   ", so their scores could not differ; the tokenizer does not fit --protocol ",
                   protocol_name(protocol));
    ids.push_back(tails[i][0]);
  }
  return ids;
}

struct Prepared {
  std::vector<Continuations> prompts;  // one an answer; tails: the letters
  MmluResult result;
};

// Where the prompt's worked examples begin and end (behind their letter), in bytes.
std::vector<std::pair<size_t, size_t>> example_spans(const MmluSubject& subject, const MmluQuestion& question,
                                                     size_t shots) {
  std::vector<std::pair<size_t, size_t>> spans;
  size_t begin = subject.header.size();
  for (size_t i = 0; i < shots; ++i) {
    spans.emplace_back(begin, begin + subject.examples[i].size() - 2);  // without the blank line
    begin += subject.examples[i].size();
  }
  // QLoRA's five-shot files have them in the question's text, behind a header of their own.
  constexpr std::string_view kAnswer = "\nAnswer:";
  size_t end = question.own_shots > 0 ? question.text.find("\n\n") : 0;
  for (int64_t i = 0; i < question.own_shots && end != std::string::npos; ++i) {
    const size_t answer = question.text.find(kAnswer, end);
    const size_t line_end = std::min(question.text.find('\n', answer + kAnswer.size()), question.text.size());
    spans.emplace_back(begin + end + 2, begin + line_end);
    end = line_end;
  }
  return spans;
}

// Worked examples that are left whole when `front` tokens are cut off the prompt's beginning or `back` tokens off its
// end.
int64_t whole_examples(const text::Tokenizer& tokenizer, bool bos, const std::string& prompt,
                       const std::vector<std::pair<size_t, size_t>>& spans, int64_t total, int64_t front,
                       int64_t back) {
  if (front == 0 && back == 0) return static_cast<int64_t>(spans.size());
  const auto tokens_of = [&](size_t bytes) {
    return static_cast<int64_t>(tokenizer.encode(std::string_view(prompt).substr(0, bytes), {.add_bos = bos}).size());
  };
  return std::count_if(spans.begin(), spans.end(), [&](const auto& span) {
    return tokens_of(span.first) >= front && tokens_of(span.second) <= total - back;
  });
}

struct Asked {
  const MmluSubject& subject;
  const MmluQuestion& question;
  Protocol protocol;
  bool bos;
  int64_t context_length;
};

// What does not fit is cut as the protocol cuts it: hendrycks drops the last worked example and tries again, qlora cuts
// the end, question and all, and lm-eval the beginning (when it is scored; here it is only counted).
Continuations prepare(const text::Tokenizer& tokenizer, Letters& letters, const Asked& asked, MmluAnswer& answer) {
  const auto& [subject, question, protocol, bos, context_length] = asked;
  size_t shots = subject.examples.size();
  std::string prompt = mmlu_prompt(subject, question, shots);
  Continuations out;
  out.where = question.where;
  out.context = tokenizer.encode(prompt, {.add_bos = bos});
  if (protocol == Protocol::kHendrycks) {
    while (static_cast<int64_t>(out.context.size()) > context_length) {
      QALORA_REQUIRE(shots > 0, DataError, question.where, ": subject '", subject.name, "', row ", question.index,
                     ": the question alone does not fit: ", out.context.size(), " tokens, and the model's context is ",
                     context_length, "; use --protocol lm-eval, which cuts such prompts on the left");
      prompt = mmlu_prompt(subject, question, --shots);
      out.context = tokenizer.encode(prompt, {.add_bos = bos});
    }
    answer.dropped_shots = static_cast<int64_t>(subject.examples.size() - shots);
  }
  QALORA_REQUIRE(!out.context.empty(), DataError, question.where, ": the prompt is empty");
  out.tails = letters.after(out.context, prompt, question.where);
  const int64_t total = static_cast<int64_t>(out.context.size());
  int64_t front = 0, back = 0;
  if (protocol == Protocol::kQlora) back = std::max<int64_t>(0, total - std::min(kQloraPromptTokens, context_length));
  if (protocol == Protocol::kLmEval) {
    size_t longest = 0;
    for (const auto& tail : out.tails) longest = std::max(longest, tail.size());
    front = std::max<int64_t>(0, total + static_cast<int64_t>(longest) - 1 - context_length);
  }
  answer.shots = whole_examples(tokenizer, bos, prompt, example_spans(subject, question, shots), total, front, back);
  answer.cut_tokens = front + back;
  out.context.resize(static_cast<size_t>(total - back));
  answer.prompt_tokens = static_cast<int64_t>(out.context.size());
  return out;
}

Prepared prepare_all(const model::Llama& model, const text::Tokenizer& tokenizer,
                     const std::vector<MmluSubject>& subjects, Protocol protocol) {
  Prepared out;
  out.result.protocol = protocol;
  out.result.bos = tokenizer.bos_id() >= 0 && (tokenizer.adds_bos() || protocol == Protocol::kQlora);
  Letters letters(tokenizer);
  for (const auto& subject : subjects) {
    throw_if_stopped();
    out.result.shots = std::max(out.result.shots, static_cast<int64_t>(subject.examples.size()));
    for (const auto& question : subject.questions) {
      MmluAnswer answer;
      answer.subject = out.result.subjects.size();
      answer.index = question.index;
      answer.answer = question.answer;
      const Asked asked{subject, question, protocol, out.result.bos, model.config.context_length};
      out.prompts.push_back(prepare(tokenizer, letters, asked, answer));
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

MmluResult run_mmlu(model::Llama& model, const text::Tokenizer& tokenizer, const std::vector<MmluSubject>& subjects,
                    Protocol protocol, int64_t batch_tokens) {
  Prepared prepared = prepare_all(model, tokenizer, subjects, protocol);
  const auto start = std::chrono::steady_clock::now();
  if (protocol == Protocol::kLmEval) {
    score_likelihoods(model, prepared, batch_tokens);
  } else {
    score_letters(model, prepared, batch_tokens);
  }
  MmluResult& result = prepared.result;
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  for (size_t i = 0; i < result.answers.size(); ++i) {
    auto& answer = result.answers[i];
    for (double score : answer.scores) {
      QALORA_REQUIRE(std::isfinite(score), DataError, prepared.prompts[i].where, ": the model scores an answer with ",
                     score,
                     ": its weights or activations are not finite; check the checkpoint, or use --dtype float32");
    }
    answer.prediction =
        static_cast<int>(std::max_element(answer.scores.begin(), answer.scores.end()) - answer.scores.begin());
    result.tokens += answer.prompt_tokens;
    if (answer.cut_tokens > 0 || answer.dropped_shots > 0) ++result.cut_prompts;
  }
  return result;
}

}  // namespace qalora::eval
