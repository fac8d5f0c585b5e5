// White space as JSON has it: what counts as blank in a data file, in answers and beside special tokens.
#pragma once

#include <string_view>

namespace qalora::text {

inline constexpr std::string_view kBlanks = " \t\r\n";

inline bool is_blank(char c) { return kBlanks.find(c) != std::string_view::npos; }
inline bool is_blank(std::string_view text) { return text.find_first_not_of(kBlanks) == std::string_view::npos; }

}  // namespace qalora::text
