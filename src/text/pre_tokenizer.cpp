#include "pre_tokenizer.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>
#include <array>
#include <utility>

#include "qalora/core/error.h"
#include "qalora/core/format.h"

namespace qalora::text {
namespace {

constexpr size_t kLongestPattern = 8192;  // bytes; LLaMA 3's has 108, the longest known about 600
constexpr uint32_t kMostSteps = 16;
constexpr uint32_t kDepthLimit = 10'000;     // of groups inside groups while matching
constexpr uint32_t kHeapLimit = 20'000;      // kB
constexpr uint32_t kMatchLimit = 1'000'000;  // of trials for one match, and kTrialsPerByte more for each byte ahead
constexpr uint64_t kTrialsPerByte = 64;
constexpr size_t kJitStack = size_t{1} << 20;

constexpr const char* kLlama3 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* kQwen2 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* kGpt2 = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

// Writes the pattern anew for PCRE2: what both libraries read alike is kept, \s becomes the property that Oniguruma
// means by it (PCRE2 counts U+180E too), and whatever they read differently, or only one of them knows, is refused.
class Translator {
 public:
  Translator(std::string_view pattern, const std::string& where) : rest_(pattern), pattern_(pattern), where_(where) {}

  std::string run() {
    while (!rest_.empty()) {
      const char c = rest_[0];
      if (c == '\\') {
        escape();
      } else if (in_class_) {
        require(c != '[' && !rest_.starts_with("&&"), "a class inside a class");
        in_class_ = c != ']';
        take(1);
      } else if (c == '[') {
        in_class_ = true;
        take(rest_.starts_with("[^") ? 2 : 1);
        require(!rest_.starts_with(']'), "a class that begins with its end");
      } else if (c == '(') {
        group();
      } else {
        require(!rest_.starts_with("}+") || !counted_, "a quantifier behind a quantifier");
        counted_ = c == '{' || (counted_ && c != '}');
        take(1);
      }
    }
    require(!in_class_, "a class without an end");
    return std::move(out_);
  }

 private:
  void take(size_t count) {
    out_ += rest_.substr(0, count);
    rest_.remove_prefix(count);
  }
  void require(bool fine, const char* what) const {
    QALORA_REQUIRE(fine, DataError, where_, ": the pattern '", pattern_.substr(0, 200), "' has ", what, " at byte ",
                   pattern_.size() - rest_.size(),
                   ", which is not supported here; the tokenizer cannot be read exactly");
  }

  void group() {
    constexpr std::array kKnown = {"(?:", "(?i:", "(?=", "(?!", "(?<=", "(?<!", "(?>"};
    const bool plain = !rest_.starts_with("(?") && !rest_.starts_with("(*");
    const auto known =
        std::find_if(kKnown.begin(), kKnown.end(), [&](const char* opening) { return rest_.starts_with(opening); });
    require(plain || known != kKnown.end(), "a group of a special kind");
    take(plain ? 1 : std::string_view(*known).size());
  }

  void escape() {
    require(rest_.size() > 1, "a backslash at its end");
    const char c = rest_[1];
    if (c == 's' || c == 'S') {
      out_ += c == 's' ? "\\p{White_Space}" : "\\P{White_Space}";
      rest_.remove_prefix(2);
    } else if (c == 'p' || c == 'P') {
      property();
    } else if (c == 'x') {
      hexadecimal();
    } else {
      // Letters, marks and numbers are escapes of their own; \d is Nd in both.
      const bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                          static_cast<unsigned char>(c) >= 0x80;
      require(!letter || std::string_view("rntfdD").find(c) != std::string_view::npos, "an escape");
      take(2);
    }
  }

  // \p{L}, \p{Nd}: a general category. \p{Han}: a script; PCRE2 would otherwise take in characters that several scripts
  // share.
  void property() {
    const size_t end = rest_.find('}');
    require(rest_.size() > 3 && rest_[2] == '{' && end != std::string_view::npos && end <= 32, "a property");
    const std::string_view name = rest_.substr(3, end - 3);
    const auto letter = [](char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); };
    require(!name.empty() && std::all_of(name.begin(), name.end(), letter), "a property");
    out_ += message(rest_.substr(0, 3), name.size() > 2 ? "sc:" : "", name, '}');
    rest_.remove_prefix(end + 1);
  }

  void hexadecimal() {
    const auto digit = [](char c) {
      return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F');
    };
    const size_t end = rest_.find('}');
    const bool braces = rest_.size() > 3 && rest_[2] == '{' && end != std::string_view::npos && end > 3 && end <= 9;
    require(braces && std::all_of(rest_.begin() + 3, rest_.begin() + static_cast<std::ptrdiff_t>(end), digit),
            "an escape");
    take(end + 1);
  }

  std::string_view rest_;
  const std::string_view pattern_;
  const std::string& where_;
  std::string out_;
  bool in_class_ = false, counted_ = false;
};

template <auto Free>
struct Freed {
  template <typename T>
  void operator()(T* pointer) const {
    Free(pointer);
  }
};

std::string pcre2_message(int code) {
  PCRE2_UCHAR text[256];
  return pcre2_get_error_message(code, text, sizeof text) > 0 ? reinterpret_cast<const char*>(text) : "unknown error";
}

// One compiled pattern with what matching it needs.
class Pattern {
 public:
  Pattern(const std::string& source, const std::string& where) : where_(where) {
    QALORA_REQUIRE(source.size() <= kLongestPattern, DataError, where, ": a pattern of ", source.size(),
                   " bytes; at most ", kLongestPattern, " are read");
    QALORA_REQUIRE(valid_utf8(source) && source.find('\0') == std::string::npos, DataError, where,
                   ": a pattern is not UTF-8 text");
    const std::string translated = Translator(source, where).run();
    int error = 0;
    size_t place = 0;
    // Ruby's ^ and $ are those of lines.
    code_.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
                              PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C | PCRE2_NO_AUTO_CAPTURE,
                              &error, &place, nullptr));
    QALORA_REQUIRE(code_, DataError, where, ": the pattern '", source.substr(0, 200),
                   "' is not a regular expression that PCRE2 reads: ", pcre2_message(error));
    uint32_t matches_nothing = 0;
    pcre2_pattern_info(code_.get(), PCRE2_INFO_MATCHEMPTY, &matches_nothing);
    QALORA_REQUIRE(matches_nothing == 0, DataError, where, ": the pattern '", source.substr(0, 200),
                   "' may match nothing; it cannot cut a text");
    jit_ = pcre2_jit_compile(code_.get(), PCRE2_JIT_COMPLETE) == 0;
    data_.reset(pcre2_match_data_create(1, nullptr));
    context_.reset(pcre2_match_context_create(nullptr));
    if (jit_) stack_.reset(pcre2_jit_stack_create(32 * 1024, kJitStack, nullptr));
    if (!data_ || !context_ || (jit_ && !stack_)) throw MemoryError("no memory for a regular expression");
    pcre2_set_depth_limit(context_.get(), kDepthLimit);
    pcre2_set_heap_limit(context_.get(), kHeapLimit);
    if (jit_) pcre2_jit_stack_assign(context_.get(), nullptr, stack_.get());
  }

  // The next match at or behind `from`: begin and end; both npos where there is none.
  std::pair<size_t, size_t> find(std::string_view text, size_t from) const {
    const uint64_t trials = std::min<uint64_t>(kMatchLimit + kTrialsPerByte * (text.size() - from), UINT32_MAX);
    pcre2_set_match_limit(context_.get(), static_cast<uint32_t>(trials));
    // The text is well-formed: checking it again for every word would be quadratic.
    const int found = pcre2_match(code_.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), from,
                                  PCRE2_NO_UTF_CHECK, data_.get(), context_.get());
    if (found == PCRE2_ERROR_NOMATCH) return {std::string_view::npos, std::string_view::npos};
    QALORA_REQUIRE(found >= 0, DataError, where_, ": a pattern of the tokenizer takes too much work on a text of ",
                   text.size(), " bytes (", pcre2_message(found), "); it does not look like one that cuts words");
    const size_t* span = pcre2_get_ovector_pointer(data_.get());
    QALORA_REQUIRE(span[0] >= from && span[1] > span[0], DataError, where_,
                   ": a pattern of the tokenizer matches nothing; it cannot cut a text");
    return {span[0], span[1]};
  }

 private:
  std::string where_;
  bool jit_ = false;
  std::unique_ptr<pcre2_code, Freed<pcre2_code_free>> code_;
  std::unique_ptr<pcre2_match_data, Freed<pcre2_match_data_free>> data_;
  std::unique_ptr<pcre2_match_context, Freed<pcre2_match_context_free>> context_;
  std::unique_ptr<pcre2_jit_stack, Freed<pcre2_jit_stack_free>> stack_;
};

}  // namespace

std::vector<SplitStep> named_steps(std::string_view name) {
  using Kind = SplitStep::Kind;
  if (name == "llama-bpe" || name == "llama3" || name == "llama-v3") return {{Kind::kIsolate, kLlama3}};
  if (name == "qwen2") return {{Kind::kIsolate, kQwen2}};
  if (name == "gpt-2" || name == "gpt2") return {{Kind::kIsolate, kGpt2}};
  return {};
}

std::string_view name_of_steps(const std::vector<SplitStep>& steps) {
  for (const std::string_view name : {"llama-bpe", "qwen2", "gpt-2"}) {
    if (steps == named_steps(name)) return name;
  }
  return "";
}

std::string escaped_pattern(std::string_view literal) {
  std::string pattern;
  for (const char c : literal) {
    if (std::string_view(R"(\^$.|?*+()[]{}#-&)").find(c) != std::string_view::npos) pattern += '\\';
    pattern += c;
  }
  return pattern;
}

struct PreTokenizer::Impl {
  struct Step {
    SplitStep::Kind kind;
    std::unique_ptr<Pattern> pattern;
  };
  std::vector<Step> steps;

  void run(size_t index, std::string_view text, bool prefix, const std::function<void(std::string_view)>& word) const {
    if (text.empty()) return;
    if (index == steps.size()) return word(text);
    const Step& step = steps[index];
    const auto next = [&](std::string_view part) { run(index + 1, part, prefix, word); };
    if (step.kind == SplitStep::Kind::kPrefix) {
      if (prefix && text.front() != ' ') return next(message(' ', text));
      return next(text);
    }
    for (size_t at = 0; at < text.size();) {
      auto [begin, end] = step.pattern->find(text, at);
      if (begin == std::string_view::npos) begin = end = text.size();
      if (step.kind != SplitStep::Kind::kExtract) next(text.substr(at, begin - at));
      if (step.kind != SplitStep::Kind::kDrop) next(text.substr(begin, end - begin));
      at = end;
    }
  }
};

PreTokenizer::PreTokenizer(const std::vector<SplitStep>& steps, const std::string& where)
    : impl_(std::make_unique<Impl>()) {
  QALORA_REQUIRE(steps.size() <= kMostSteps, DataError, where, ": ", steps.size(),
                 " steps cut a text into words; at most ", kMostSteps, " are read");
  for (const SplitStep& step : steps) {
    const bool matches = step.kind != SplitStep::Kind::kPrefix;
    impl_->steps.push_back({step.kind, matches ? std::make_unique<Pattern>(step.pattern, where) : nullptr});
  }
}
PreTokenizer::~PreTokenizer() = default;
PreTokenizer::PreTokenizer(PreTokenizer&&) noexcept = default;

void PreTokenizer::split(std::string_view text, bool prefix, const std::function<void(std::string_view)>& word) const {
  impl_->run(0, text, prefix, word);
}

}  // namespace qalora::text
