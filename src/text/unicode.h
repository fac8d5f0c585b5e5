// What needs Unicode's tables; they are utf8proc's.
#pragma once

#include <string>
#include <string_view>

namespace qalora::text {

enum class Normalization { kNone, kNfc, kNfd, kNfkc, kNfkd };
std::string_view normalization_name(Normalization form);  // "NFC"; "" for kNone

// The text in a normal form; bytes that are no UTF-8 stay where they are.
std::string normalize(std::string_view text, Normalization form);

// Length of the character with the property White_Space that `text` begins or ends with; 0 where it does not.
size_t white_space_at_front(std::string_view text);
size_t white_space_at_back(std::string_view text);

}  // namespace qalora::text
