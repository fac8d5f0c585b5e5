// How a text is cut into words before byte-pair encoding: a tokenizer.json's "pre_tokenizer", step by step, with PCRE2.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace qalora::text {

struct SplitStep {
  enum class Kind {
    kIsolate,  // matches of the pattern and what lies between them
    kExtract,  // matches only
    kDrop,     // what lies between matches only
    kPrefix,   // a blank in front of a word that does not begin with one
  };
  Kind kind = Kind::kIsolate;
  std::string pattern;  // a regular expression as the tokenizers library has it (Oniguruma's, Ruby's syntax)

  bool operator==(const SplitStep&) const = default;
};

// The steps by the names that GGUF gives to them: "llama-bpe", "qwen2", "gpt-2". Empty for another name.
std::vector<SplitStep> named_steps(std::string_view name);
std::string_view name_of_steps(const std::vector<SplitStep>& steps);  // "" when they have none

std::string escaped_pattern(std::string_view literal);  // a pattern that matches just this text

class PreTokenizer {
 public:
  // DataError, beginning with `where`, for a pattern that is too long, uses what the two libraries read differently, or
  // may match nothing.
  PreTokenizer(const std::vector<SplitStep>& steps, const std::string& where);
  ~PreTokenizer();
  PreTokenizer(PreTokenizer&&) noexcept;

  // text: well-formed UTF-8. Calls word() for each, in order, none of them empty. Not for two threads at once. prefix:
  // whether the steps that put blanks in front do so. DataError when a pattern needs more work than any sane one does.
  void split(std::string_view text, bool prefix, const std::function<void(std::string_view)>& word) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace qalora::text
