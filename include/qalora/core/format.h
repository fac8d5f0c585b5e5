// Numbers and names as people read them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace qalora {

std::string format_bytes(uint64_t bytes);     // "3.91 GB" (powers of 1000)
std::string format_duration(double seconds);  // "0.4 s", "1:31", "2:05:09"
std::string format_clock(double seconds);     // "0:07", "1:31", "2:05:09"
std::string format_count(int64_t count);      // "1,234,567"
std::string format_fixed(double value, int digits);
// Shortest decimal that reads back as the same double ("0.0002", "2e-05").
std::string format_number(double value);
std::string join(const std::vector<std::string>& parts, std::string_view separator);
std::vector<std::string> split(std::string_view text, char separator);

// The candidate nearest to `word` by edit distance when it is near enough to be a likely typing error, else "".
std::string closest(std::string_view word, const std::vector<std::string>& candidates);
// " (did you mean 'x'?)" or "".
std::string did_you_mean(std::string_view word, const std::vector<std::string>& candidates);

// A plain-text table; the first row is the header, columns are padded, numbers (cells that start with a digit, '-' or
// '+') are right-aligned.
std::string format_table(const std::vector<std::vector<std::string>>& rows);

// True when the bytes are well-formed UTF-8 (no overlong forms, no surrogates).
bool valid_utf8(std::string_view text);

}  // namespace qalora
