#include "unicode.h"

#include <utf8proc.h>

#include <algorithm>
#include <cstdlib>
#include <memory>

#include "qalora/core/error.h"
#include "utf8.h"

namespace qalora::text {
namespace {

utf8proc_option_t options_of(Normalization form) {
  const bool composed = form == Normalization::kNfc || form == Normalization::kNfkc;
  const bool compatible = form == Normalization::kNfkc || form == Normalization::kNfkd;
  return static_cast<utf8proc_option_t>(UTF8PROC_STABLE | (composed ? UTF8PROC_COMPOSE : UTF8PROC_DECOMPOSE) |
                                        (compatible ? UTF8PROC_COMPAT : 0));
}

// text: well-formed
std::string normalized_part(std::string_view text, Normalization form) {
  utf8proc_uint8_t* raw = nullptr;
  const utf8proc_ssize_t length = utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
                                               static_cast<utf8proc_ssize_t>(text.size()), &raw, options_of(form));
  const std::unique_ptr<utf8proc_uint8_t, decltype(&std::free)> owner(raw, &std::free);
  if (length == UTF8PROC_ERROR_NOMEM) throw MemoryError("no memory to normalise a text");
  QALORA_CHECK(length >= 0, utf8proc_errmsg(length));
  return {reinterpret_cast<const char*>(raw), static_cast<size_t>(length)};
}

// The form changes nothing that is ASCII.
bool is_ascii(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) < 0x80; });
}

bool is_white_space(std::string_view character) {
  utf8proc_int32_t code = -1;
  utf8proc_iterate(reinterpret_cast<const utf8proc_uint8_t*>(character.data()),
                   static_cast<utf8proc_ssize_t>(character.size()), &code);
  if ((code >= 0x09 && code <= 0x0d) || code == 0x85) return true;  // controls, whose category says nothing of it
  const utf8proc_category_t category = code < 0 ? UTF8PROC_CATEGORY_CN : utf8proc_category(code);
  return category == UTF8PROC_CATEGORY_ZS || category == UTF8PROC_CATEGORY_ZL || category == UTF8PROC_CATEGORY_ZP;
}

}  // namespace

std::string_view normalization_name(Normalization form) {
  constexpr std::string_view kNames[] = {"", "NFC", "NFD", "NFKC", "NFKD"};
  return kNames[static_cast<int>(form)];
}

std::string normalize(std::string_view text, Normalization form) {
  if (form == Normalization::kNone || is_ascii(text)) return std::string(text);
  std::string result;
  for (size_t begin = 0; begin < text.size();) {
    size_t end = begin;
    for (size_t length; end < text.size() && (length = utf8_character(text.substr(end))) > 0;) end += length;
    result += normalized_part(text.substr(begin, end - begin), form);
    if (end < text.size()) result += text[end++];
    begin = end;
  }
  return result;
}

size_t white_space_at_front(std::string_view text) {
  const size_t length = utf8_character(text);
  return length > 0 && is_white_space(text.substr(0, length)) ? length : 0;
}

size_t white_space_at_back(std::string_view text) {
  for (size_t length = 1; length <= std::min<size_t>(3, text.size());
       ++length) {  // white space takes three bytes at most
    const std::string_view last = text.substr(text.size() - length);
    if (utf8_character(last) == length) return is_white_space(last) ? length : 0;
  }
  return 0;
}

}  // namespace qalora::text
