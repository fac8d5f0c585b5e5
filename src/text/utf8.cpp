#include "utf8.h"

#include <algorithm>

#include "qalora/core/format.h"

namespace qalora::text {
namespace {

// Length that the first byte of a character announces; 0 for a byte that begins none.
size_t announced_length(unsigned char first) {
  if (first < 0x80) return 1;
  if (first >= 0xc2 && first <= 0xdf) return 2;
  if (first >= 0xe0 && first <= 0xef) return 3;
  if (first >= 0xf0 && first <= 0xf4) return 4;
  return 0;
}

// Bytes at the front that could have begun a character together, at least one. bytes: begin with none that is complete.
size_t broken_length(std::string_view bytes) {
  const auto first = static_cast<unsigned char>(bytes[0]);
  const size_t wanted = announced_length(first);
  size_t length = 1;
  while (length < wanted && length < bytes.size()) {
    const auto next = static_cast<unsigned char>(bytes[length]);
    unsigned low = 0x80, high = 0xbf;
    if (length == 1) {  // no overlong forms, no surrogates, nothing above U+10FFFF
      if (first == 0xe0) low = 0xa0;
      if (first == 0xed) high = 0x9f;
      if (first == 0xf0) low = 0x90;
      if (first == 0xf4) high = 0x8f;
    }
    if (next < low || next > high) break;
    ++length;
  }
  return length;
}

}  // namespace

size_t utf8_character(std::string_view bytes) {
  if (bytes.empty()) return 0;
  const size_t length = announced_length(static_cast<unsigned char>(bytes[0]));
  return length > 0 && length <= bytes.size() && valid_utf8(bytes.substr(0, length)) ? length : 0;
}

size_t incomplete_tail(std::string_view bytes) {
  for (size_t count = 1; count <= std::min<size_t>(3, bytes.size()); ++count) {
    const auto byte = static_cast<unsigned char>(bytes[bytes.size() - count]);
    if ((byte & 0xc0) == 0x80) continue;  // inside a character: its first byte lies further left
    return announced_length(byte) > count ? count : 0;
  }
  return 0;
}

std::string replace_invalid_utf8(std::string_view bytes) {
  std::string text;
  text.reserve(bytes.size());
  while (!bytes.empty()) {
    const size_t length = utf8_character(bytes);
    text += length > 0 ? bytes.substr(0, length) : kReplacement;
    bytes.remove_prefix(std::max<size_t>(length, 1));
  }
  return text;
}

std::string replace_broken_characters(std::string_view bytes) {
  std::string text;
  text.reserve(bytes.size());
  while (!bytes.empty()) {
    size_t length = utf8_character(bytes);
    text += length > 0 ? bytes.substr(0, length) : kReplacement;
    if (length == 0) length = broken_length(bytes);
    bytes.remove_prefix(length);
  }
  return text;
}

}  // namespace qalora::text
