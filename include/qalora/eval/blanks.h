// White space as Python's str.strip sees it, which the lm-evaluation-harness's prompts are made with.
#pragma once

#include <cstddef>
#include <string_view>

namespace qalora::eval {

// Bytes of blank characters at the beginning and at the end of UTF-8 text.
size_t leading_blanks(std::string_view text);
size_t trailing_blanks(std::string_view text);

}  // namespace qalora::eval
