// What is wrong with a JSON text, for messages.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace qalora::io {

// byte: where the parser stopped, counted from 1; behind the end when the text ends too early.
std::string json_fault(std::string_view text, size_t byte);

}  // namespace qalora::io
