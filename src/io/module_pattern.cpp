#include "module_pattern.h"

#include <vector>

#include "qalora/core/error.h"

namespace qalora::io {
namespace {

constexpr size_t kLongestPattern = 512;
constexpr size_t kMostAlternatives = 256;

[[noreturn]] void refuse(const std::string& where, const std::string& pattern) {
  throw DataError(message(where, ": the pattern '", pattern,
                          "' is a regular expression of a kind that is not read here; write the modules' "
                          "names out"));
}

// Inside "\(" or "[(]" a character has no meaning; steps over such a unit.
size_t unit_end(const std::string& text, size_t at) {
  if (text[at] == '\\') return std::min(at + 2, text.size());
  if (text[at] != '[') return at + 1;
  const size_t close = text.find(']', at + 2);
  return close == std::string::npos ? text.size() : close + 1;
}

// "a|b" -> {"a", "b"}
std::vector<std::string> split_alternatives(const std::string& text) {
  std::vector<std::string> parts(1);
  for (size_t at = 0; at < text.size();) {
    const size_t end = unit_end(text, at);
    if (text[at] == '|') {
      parts.emplace_back();
    } else {
      parts.back() += text.substr(at, end - at);
    }
    at = end;
  }
  return parts;
}

bool is_quantifier(char c) { return c == '*' || c == '+' || c == '?' || c == '{'; }

// "layers\.(0|1)\.q" -> {"layers\.0\.q", "layers\.1\.q"}; top-level alternatives as well.
std::vector<std::string> without_groups(const std::string& where, const std::string& pattern) {
  std::vector<std::string> done, open(1);
  for (size_t at = 0; at < pattern.size();) {
    const size_t end = unit_end(pattern, at);
    std::vector<std::string> choices = {pattern.substr(at, end - at)};
    size_t next = end;
    if (pattern[at] == '|') {
      done.insert(done.end(), open.begin(), open.end());
      open.assign(1, "");
      choices = {""};
    } else if (pattern[at] == '(') {
      size_t close = at + 1;
      while (close < pattern.size() && pattern[close] != ')' && pattern[close] != '(') close = unit_end(pattern, close);
      if (close >= pattern.size() || pattern[close] == '(') refuse(where, pattern);
      std::string inner = pattern.substr(at + 1, close - at - 1);
      if (inner.starts_with("?:")) inner.erase(0, 2);
      next = close + 1;
      if (inner.starts_with("?") || (next < pattern.size() && is_quantifier(pattern[next]))) refuse(where, pattern);
      choices = split_alternatives(inner);
    } else if (pattern[at] == ')') {
      refuse(where, pattern);
    }
    if (open.size() * choices.size() + done.size() > kMostAlternatives) refuse(where, pattern);
    std::vector<std::string> grown;
    for (const auto& begin : open) {
      for (const auto& choice : choices) grown.push_back(begin + choice);
    }
    open = std::move(grown);
    at = next;
  }
  done.insert(done.end(), open.begin(), open.end());
  return done;
}

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_word(char c) { return is_digit(c) || c == '_' || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }

// One character of the text against one unit of the pattern: "a", ".", "\d", "[0-9_]".
bool unit_matches(const std::string& unit, char c) {
  if (unit == ".") return true;
  if (unit == "\\d") return is_digit(c);
  if (unit == "\\w") return is_word(c);
  if (unit[0] == '\\') return c == unit[1];
  if (unit[0] != '[') return c == unit[0];
  const bool inverted = unit[1] == '^';
  bool inside = false;
  for (size_t i = inverted ? 2 : 1; i + 1 < unit.size(); ++i) {
    if (i + 3 < unit.size() && unit[i + 1] == '-') {
      inside = inside || (unit[i] <= c && c <= unit[i + 2]);
      i += 2;
    } else {
      inside = inside || c == unit[i];
    }
  }
  return inside != inverted;
}

bool unit_is_read(const std::string& unit) {
  if (unit[0] == '[') return unit.size() > 2 && unit.back() == ']' && unit.find('\\') == std::string::npos;
  if (unit[0] == '\\') return unit.size() == 2 && (unit == "\\d" || unit == "\\w" || !is_word(unit[1]));
  return !is_quantifier(unit[0]) && unit[0] != '^' && unit[0] != '$';
}

// `reached`: the places in the text up to which the pattern so far may have come.
bool alternative_matches(const std::string& where, const std::string& whole, std::string pattern,
                         const std::string& text) {
  std::vector<bool> reached(text.size() + 1, false);
  reached[0] = true;
  const bool anchored = pattern.starts_with('^');
  if (anchored) pattern.erase(0, 1);
  if (pattern.ends_with('$') && !pattern.ends_with("\\$")) pattern.pop_back();
  for (size_t i = 0; !anchored && i < text.size(); ++i) reached[i + 1] = text[i] == '.';
  for (size_t at = 0; at < pattern.size();) {
    const size_t end = unit_end(pattern, at);
    const std::string unit = pattern.substr(at, end - at);
    if (!unit_is_read(unit)) refuse(where, whole);
    const char quantifier = end < pattern.size() && is_quantifier(pattern[end]) ? pattern[end] : ' ';
    if (quantifier == '{') refuse(where, whole);
    at = end + (quantifier == ' ' ? 0 : 1);
    const bool repeats = quantifier == '*' || quantifier == '+', optional = quantifier == '*' || quantifier == '?';
    std::vector<bool> next(text.size() + 1, false);
    for (size_t i = 0; i <= text.size(); ++i) {
      if (optional && reached[i]) next[i] = true;
      const bool from = reached[i] || (repeats && next[i]);
      if (from && i < text.size() && unit_matches(unit, text[i])) next[i + 1] = true;
    }
    reached = std::move(next);
  }
  return reached[text.size()];
}

}  // namespace

bool matches_module(const std::string& where, const std::string& pattern, const std::string& module) {
  if (pattern.empty() || pattern.size() > kLongestPattern) refuse(where, pattern.substr(0, kLongestPattern));
  bool any = false;  // every alternative is looked at, so that one which cannot be read is never passed over
  for (const std::string& alternative : without_groups(where, pattern)) {
    any = alternative_matches(where, pattern, alternative, module) || any;
  }
  return any;
}

}  // namespace qalora::io
