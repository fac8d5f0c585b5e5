// The part of TOML that our configuration files use, read strictly: what is not understood is an error, never a guess.
//
//   key = "text with \n \" \\ \u00e9 escapes"   key = 'text as it is'   key = 12   key = 1e-4   key = true
//   key = ["a",   # over several lines, with comments
//          "b"]
//   [section]
//
// Not read, and said so: dates, inline tables, tables of tables, dotted or quoted keys, text over several lines, arrays
// of anything but text.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace qalora::cli {

struct TomlNumber {
  std::string digits;  // as written, without '_' and a leading '+'
};

using TomlValue = std::variant<std::string, TomlNumber, bool, std::vector<std::string>>;

struct TomlEntry {
  std::string section, key;
  TomlValue value;
  int64_t line = 0;  // where the key stands, from 1
};

// In the order of the file. UserError "name:line: ..." for what is not TOML and for a key given twice in a section.
std::vector<TomlEntry> parse_toml(std::string_view text, const std::string& name);

// Text between double quotes, so that parse_toml gives it back byte for byte.
std::string toml_quoted(std::string_view text);
// As a person would type it: text without quotes, lists joined by ", ".
std::string toml_plain(const TomlValue& value);

}  // namespace qalora::cli
