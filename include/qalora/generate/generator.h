// Text from a prompt, one token at a time.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "qalora/generate/sampler.h"
#include "qalora/model/llama.h"
#include "qalora/text/tokenizer.h"

namespace qalora::generate {

struct GenerateOptions {
  int64_t max_tokens = 256;
  std::vector<int64_t> stop_ids;  // end the text and are not part of it
  SamplerOptions sampler;
};

struct Generation {
  std::vector<int64_t> ids;  // without prompt and stop token
  bool stopped = false;      // by a stop token; else by max_tokens or the context's end
  int64_t prompt_tokens = 0;
  int64_t decode_steps = 0;  // forward passes of one token
  double prefill_seconds = 0, decode_seconds = 0;
};

// Calls on_token with each new id. UserError when the prompt is empty or leaves no room in the context.
Generation generate(model::Llama& model, const std::vector<int64_t>& prompt, const GenerateOptions& options,
                    const std::function<void(int64_t)>& on_token);

// Turns ids into pieces of text as they come, each of them valid UTF-8. context: the ids that they continue; with none
// the text stands alone, and a blank that only separates words is not part of its beginning.
class TextStream {
 public:
  explicit TextStream(const text::Tokenizer& tokenizer, std::vector<int64_t> context = {})
      : tokenizer_(tokenizer),
        ids_(std::move(context)),
        before_(tokenizer.decode(ids_)) {}
  std::string push(int64_t id);  // what can be shown now, may be ""
  std::string finish();          // what was held back; an unfinished character becomes U+FFFD
  const std::string& text() const { return text_; }

 private:
  const text::Tokenizer& tokenizer_;
  std::vector<int64_t> ids_;  // context and text
  std::string before_, text_;
};

}  // namespace qalora::generate
