#include "byte_letters.h"

namespace qalora::text {
namespace {

// Code points up to U+0143 take two bytes at most.
std::string utf8_of(int code) {
  if (code < 0x80) return std::string(1, static_cast<char>(code));
  return {static_cast<char>(0xc0 | code >> 6), static_cast<char>(0x80 | (code & 0x3f))};
}

constexpr bool stands_for_itself(int byte) {
  return (byte >= '!' && byte <= '~') || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
}

struct Alphabet {
  std::array<std::string, 256> letters;
  std::array<int, 0x200> bytes;  // by code point, -1: no letter

  Alphabet() {
    bytes.fill(-1);
    for (int byte = 0, next = 0x100; byte < 256; ++byte) {
      const int code = stands_for_itself(byte) ? byte : next++;
      letters[byte] = utf8_of(code);
      bytes[code] = byte;
    }
  }
};

const Alphabet& alphabet() {
  static const Alphabet made;
  return made;
}

}  // namespace

const std::array<std::string, 256>& byte_letters() { return alphabet().letters; }

std::string to_letters(std::string_view bytes) {
  std::string text;
  for (const char byte : bytes) text += byte_letters()[static_cast<unsigned char>(byte)];
  return text;
}

std::optional<std::string> from_letters(std::string_view text) {
  std::string bytes;
  for (size_t at = 0; at < text.size(); ++at) {
    int code = static_cast<unsigned char>(text[at]);
    if (code >= 0x80) {
      if ((code & 0xe0) != 0xc0 || at + 1 == text.size()) return std::nullopt;  // longer than any letter
      const auto second = static_cast<unsigned char>(text[++at]);
      if ((second & 0xc0) != 0x80) return std::nullopt;
      code = (code & 0x1f) << 6 | (second & 0x3f);
    }
    if (code >= 0x200 || alphabet().bytes[code] < 0) return std::nullopt;
    bytes += static_cast<char>(alphabet().bytes[code]);
  }
  return bytes;
}

}  // namespace qalora::text
