#include "qalora/eval/blanks.h"

#include <algorithm>
#include <iterator>

namespace qalora::eval {
namespace {

// Beside ASCII: U+0085, U+00A0, U+1680, U+2000 .. U+200A, U+2028, U+2029, U+202F, U+205F, U+3000.
constexpr std::string_view kWide[] = {"\xC2\x85",     "\xC2\xA0",     "\xE1\x9A\x80", "\xE2\x80\x80", "\xE2\x80\x81",
                                      "\xE2\x80\x82", "\xE2\x80\x83", "\xE2\x80\x84", "\xE2\x80\x85", "\xE2\x80\x86",
                                      "\xE2\x80\x87", "\xE2\x80\x88", "\xE2\x80\x89", "\xE2\x80\x8A", "\xE2\x80\xA8",
                                      "\xE2\x80\xA9", "\xE2\x80\xAF", "\xE2\x81\x9F", "\xE3\x80\x80"};

bool is_narrow(char c) { return c == ' ' || (c >= '\t' && c <= '\r') || (c >= '\x1C' && c <= '\x1F'); }

}  // namespace

size_t leading_blanks(std::string_view text) {
  size_t count = 0;
  while (count < text.size()) {
    const std::string_view rest = text.substr(count);
    const auto* wide = std::find_if(std::begin(kWide), std::end(kWide),
                                    [&](std::string_view blank) { return rest.starts_with(blank); });
    if (wide != std::end(kWide)) {
      count += wide->size();
    } else if (is_narrow(rest.front())) {
      ++count;
    } else {
      break;
    }
  }
  return count;
}

size_t trailing_blanks(std::string_view text) {
  size_t count = 0;
  while (count < text.size()) {
    const std::string_view rest = text.substr(0, text.size() - count);
    const auto* wide =
        std::find_if(std::begin(kWide), std::end(kWide), [&](std::string_view blank) { return rest.ends_with(blank); });
    if (wide != std::end(kWide)) {
      count += wide->size();
    } else if (is_narrow(rest.back())) {
      ++count;
    } else {
      break;
    }
  }
  return count;
}

}  // namespace qalora::eval
