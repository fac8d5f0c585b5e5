// Broken UTF-8: what a byte-fallback vocabulary can produce in the middle of a character.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace qalora::text {

inline constexpr std::string_view kReplacement = "\uFFFD";

// Length of the well-formed character at the beginning of `bytes`; 0 where there is none.
size_t utf8_character(std::string_view bytes);

// How many bytes at the end (0 to 3) are the beginning of a character that more bytes could complete.
size_t incomplete_tail(std::string_view bytes);

// Every byte that belongs to no well-formed character becomes U+FFFD.
std::string replace_invalid_utf8(std::string_view bytes);
// Each longest beginning of a character that is not completed becomes one U+FFFD (Unicode 3.9, "maximal subpart").
std::string replace_broken_characters(std::string_view bytes);

}  // namespace qalora::text
