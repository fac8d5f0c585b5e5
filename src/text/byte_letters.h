// GPT-2's alphabet: every byte as a letter that can be seen, so that a vocabulary of byte strings can be written as
// text.
#pragma once

#include <array>
#include <optional>
#include <string>
#include <string_view>

namespace qalora::text {

// The letter of each byte, in UTF-8: printable Latin-1 characters stand for themselves, the other 68 bytes for U+0100
// and up.
const std::array<std::string, 256>& byte_letters();
std::string to_letters(std::string_view bytes);
// nullopt where a character is none of the alphabet.
std::optional<std::string> from_letters(std::string_view text);

}  // namespace qalora::text
