#include "qalora/cli/toml.h"

#include <algorithm>
#include <charconv>
#include <set>

#include "qalora/core/error.h"
#include "qalora/core/format.h"

namespace qalora::cli {
namespace {

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_key(char c) { return is_digit(c) || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || c == '-'; }
bool is_control(char c) { return (static_cast<unsigned char>(c) < 0x20 && c != '\t') || c == 0x7f; }

std::string utf8_of(uint32_t code) {
  const auto tail = [&](int shift) { return static_cast<char>(0x80 | (code >> shift & 0x3f)); };
  if (code < 0x80) return {static_cast<char>(code)};
  if (code < 0x800) return {static_cast<char>(0xc0 | code >> 6), tail(0)};
  if (code < 0x10000) return {static_cast<char>(0xe0 | code >> 12), tail(6), tail(0)};
  return {static_cast<char>(0xf0 | code >> 18), tail(12), tail(6), tail(0)};
}

// JSON's numbers, with the '+' and the '_' between digits that TOML adds; "" for anything else.
std::string number_digits(std::string_view word) {
  std::string digits;
  if (word.starts_with("+-")) return "";
  for (size_t i = 0; i < word.size(); ++i) {
    const bool between = i > 0 && i + 1 < word.size() && is_digit(word[i - 1]) && is_digit(word[i + 1]);
    if (word[i] == '_' && !between) return "";
    if (word[i] != '_' && !(i == 0 && word[i] == '+')) digits += word[i];
  }
  size_t at = !digits.empty() && digits[0] == '-' ? 1 : 0;
  const auto take_digits = [&] {
    const size_t begin = at;
    while (at < digits.size() && is_digit(digits[at])) ++at;
    return at - begin;
  };
  const bool zero = at < digits.size() && digits[at] == '0';
  const size_t whole = take_digits();
  if (whole == 0 || (zero && whole > 1)) return "";
  if (at < digits.size() && digits[at] == '.' && (++at, take_digits() == 0)) return "";
  if (at < digits.size() && (digits[at] == 'e' || digits[at] == 'E')) {
    if (++at < digits.size() && (digits[at] == '+' || digits[at] == '-')) ++at;
    if (take_digits() == 0) return "";
  }
  return at == digits.size() ? digits : "";
}

class Parser {
 public:
  Parser(std::string_view text, const std::string& name) : text_(text), name_(name) {
    if (text_.starts_with("\xEF\xBB\xBF")) text_.remove_prefix(3);
  }

  std::vector<TomlEntry> entries() {
    std::vector<TomlEntry> out;
    std::set<std::pair<std::string, std::string>> seen;
    std::set<std::string> sections;
    for (skip_lines(); at_ < text_.size(); skip_lines()) {
      if (text_[at_] == '[') {
        section_ = read_section();
        require(sections.insert(section_).second, message("section '", section_, "' is given twice"));
      } else {
        out.push_back(read_entry());
        require(seen.insert({section_, out.back().key}).second, message("key '", out.back().key, "' is given twice"));
      }
      skip_blanks();
      skip_comment();
      require(at_ == text_.size() || end_of_line(),
              message("expected the end of the line, got '", rest_of_line(), "'"));
    }
    return out;
  }

 private:
  void require(bool good, const std::string& what) const {
    QALORA_REQUIRE(good, UserError, name_, ":", line_, ": ", what);
  }

  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }
  bool end_of_line() const {
    return peek() == '\n' || (peek() == '\r' && at_ + 1 < text_.size() && text_[at_ + 1] == '\n');
  }
  std::string rest_of_line() const {
    const std::string_view rest = text_.substr(at_, text_.find('\n', at_) - at_);
    return std::string(rest.substr(0, 40));
  }

  void skip_blanks() {
    while (peek() == ' ' || peek() == '\t') ++at_;
  }
  void skip_comment() {
    if (peek() != '#') return;
    while (at_ < text_.size() && !end_of_line()) ++at_;
  }
  // Blanks, comments and line ends.
  void skip_lines() {
    while (true) {
      skip_blanks();
      skip_comment();
      if (!end_of_line()) return;
      at_ = text_.find('\n', at_) + 1;
      ++line_;
    }
  }

  std::string read_key(const char* of_what) {
    const size_t begin = at_;
    while (is_key(peek())) ++at_;
    require(at_ > begin, message("expected ", of_what, " of letters, digits, '_' and '-', got '", rest_of_line(), "'"));
    return std::string(text_.substr(begin, at_ - begin));
  }

  std::string read_section() {
    ++at_;
    skip_blanks();
    const std::string section = read_key("the name of a section");
    skip_blanks();
    require(peek() == ']', message("expected ']' after [", section, ", got '", rest_of_line(), "'"));
    ++at_;
    return section;
  }

  TomlEntry read_entry() {
    TomlEntry entry{section_, read_key("a key"), {}, line_};
    skip_blanks();
    require(peek() == '=', message("expected '=' and a value after '", entry.key, "', got '", rest_of_line(), "'"));
    ++at_;
    skip_blanks();
    entry.value = read_value(entry.key);
    return entry;
  }

  TomlValue read_value(const std::string& key) {
    if (peek() == '"' || peek() == '\'') return read_text();
    if (peek() == '[') return read_array(key);
    const size_t begin = at_;
    while (at_ < text_.size() && std::string_view(" \t\r\n#,").find(text_[at_]) == std::string_view::npos) ++at_;
    const std::string word(text_.substr(begin, at_ - begin));
    if (word == "true" || word == "false") return word == "true";
    const std::string digits = number_digits(word);
    require(!digits.empty(), message("'", key, "' is ", word.empty() ? "empty" : word,
                                     ", expected text in quotes, a number, true, false or a list of texts"));
    return TomlNumber{digits};
  }

  std::vector<std::string> read_array(const std::string& key) {
    const int64_t begin = line_;
    std::vector<std::string> out;
    ++at_;
    while (true) {
      skip_lines();
      if (peek() == ']') break;
      require(at_ < text_.size(),
              message("the list of '", key, "' begins in line ", begin, " and never ends: ']' is missing"));
      require(peek() == '"' || peek() == '\'',
              message("the list of '", key, "' holds texts in quotes, got '", rest_of_line(), "'"));
      out.push_back(read_text());
      skip_lines();
      if (peek() == ',') {
        ++at_;
      } else {
        require(peek() == ']', message("expected ',' or ']' in the list of '", key, "', got '", rest_of_line(), "'"));
      }
    }
    ++at_;
    return out;
  }

  std::string read_text() {
    const char quote = text_[at_];
    require(text_.substr(at_, 3) != std::string(3, quote), "text over several lines is not read here; use \\n");
    std::string out;
    for (++at_; peek() != quote || at_ >= text_.size();) {
      require(at_ < text_.size() && !end_of_line(), message("a text never ends: ", quote, " is missing"));
      require(!is_control(peek()), "a control character inside a text; write it as \\uXXXX");
      if (quote == '"' && peek() == '\\') {
        out += read_escape();
      } else {
        out += text_[at_++];
      }
    }
    ++at_;
    return out;
  }

  std::string read_escape() {
    constexpr std::string_view kNames = "btnfr\"\\", kMeanings = "\b\t\n\f\r\"\\";
    ++at_;
    const char name = peek();
    const size_t simple = kNames.find(name);
    if (at_ < text_.size() && simple != std::string_view::npos) {
      ++at_;
      return {kMeanings[simple]};
    }
    const size_t digits = name == 'u' ? 4 : name == 'U' ? 8 : 0;
    const std::string_view hex = text_.substr(std::min(at_ + 1, text_.size()), digits);
    uint32_t code = 0;
    const auto [end, error] = std::from_chars(hex.data(), hex.data() + hex.size(), code, 16);
    const bool good = digits > 0 && hex.size() == digits && error == std::errc() && end == hex.data() + digits;
    require(
        good && code <= 0x10ffff && (code < 0xd800 || code > 0xdfff),
        message("'\\", rest_of_line().substr(0, 1 + digits), "' is not an escape; a backslash itself is written \\\\"));
    at_ += 1 + digits;
    return utf8_of(code);
  }

  std::string_view text_;
  const std::string& name_;
  std::string section_;
  size_t at_ = 0;
  int64_t line_ = 1;
};

}  // namespace

std::vector<TomlEntry> parse_toml(std::string_view text, const std::string& name) {
  return Parser(text, name).entries();
}

std::string toml_quoted(std::string_view text) {
  constexpr char kHex[] = "0123456789abcdef";
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      out += {'\\', c};
    } else if (c == '\n') {
      out += "\\n";
    } else if (is_control(c)) {
      out += {'\\', 'u', '0', '0', kHex[c >> 4], kHex[c & 15]};
    } else {
      out += c;
    }
  }
  return out + "\"";
}

std::string toml_plain(const TomlValue& value) {
  if (const auto* number = std::get_if<TomlNumber>(&value)) return number->digits;
  if (const auto* list = std::get_if<std::vector<std::string>>(&value)) return join(*list, ", ");
  if (const auto* flag = std::get_if<bool>(&value)) return *flag ? "true" : "false";
  return std::get<std::string>(value);
}

}  // namespace qalora::cli
