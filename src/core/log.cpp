#include "qalora/core/log.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <mutex>

#include "qalora/core/error.h"

namespace qalora::log {

namespace {

std::atomic<Level> current_level = Level::kNormal;  // apart from the rest: a signal's handler reads it

struct State {
  std::mutex mutex;
  Options options;
  std::FILE* file = nullptr;  // open until the process ends
  bool live = false;          // a live line stands on the terminal
};

State& state() {
  static State instance;
  return instance;
}

void erase_live_line(State& s) {
  if (s.live) std::fputs("\r\033[K", stderr);
  s.live = false;
}

// Names from files stand in messages: control characters, which a terminal would obey, are written as \\x1b, and what
// is far too long loses its middle. A line after the first is indented, so that a name with a line break cannot pass
// for a message of its own.
std::string printable(const std::string& text) {
  constexpr size_t kLongest = 4000, kStart = 3000, kEnd = 500;
  if (text.size() > kLongest) {
    return printable(text.substr(0, kStart)) + message(" ... (", text.size() - kStart - kEnd, " bytes left out) ... ") +
           printable(text.substr(text.size() - kEnd));
  }
  std::string result;
  const auto escape = [&](unsigned char byte) {
    char code[8];
    std::snprintf(code, sizeof code, "\\x%02x", byte);
    result += code;
  };
  for (size_t i = 0; i < text.size(); ++i) {
    const auto byte = static_cast<unsigned char>(text[i]),
               next = static_cast<unsigned char>(i + 1 < text.size() ? text[i + 1] : 0);
    if (byte == '\n') {
      result += "\n  ";
    } else if (byte == 0xC2 && next >= 0x80 &&
               next < 0xA0) {  // U+0080 to U+009F, the other half of the control characters
      escape(next);
      ++i;
    } else if ((byte < 0x20 && byte != '\t') || byte == 0x7F) {
      escape(byte);
    } else {
      result += text[i];
    }
  }
  return result;
}

void emit(const std::string& label, const char* color, const std::string& raw, bool on_terminal) {
  const std::string text = printable(raw);
  State& s = state();
  const bool paint = colored();
  std::lock_guard lock(s.mutex);
  if (on_terminal) {
    erase_live_line(s);
    const std::string head = label.empty() || !paint ? label : color + label + "\033[0m";
    std::fprintf(stderr, "%s%s\n", head.c_str(), text.c_str());
  }
  if (s.file == nullptr) return;
  const std::time_t now = std::time(nullptr);
  std::tm local = {};
  localtime_r(&now, &local);
  char stamp[32];
  std::strftime(stamp, sizeof stamp, "%Y-%m-%d %H:%M:%S", &local);
  std::fprintf(s.file, "%s  %s%s\n", stamp, label.c_str(), text.c_str());
  std::fflush(s.file);
}

std::string wrapped(const char* code, const std::string& text) { return colored() ? code + text + "\033[0m" : text; }

// Shortened so that it does not wrap: a wrapped line cannot be redrawn.
std::string fitted(const std::string& text) {
  struct winsize window = {};
  if (ioctl(STDERR_FILENO, TIOCGWINSZ, &window) != 0 || window.ws_col < 2 || text.size() < window.ws_col) return text;
  size_t size = window.ws_col - 1u;
  while (size > 0 && (static_cast<unsigned char>(text[size]) & 0xC0) == 0x80) --size;  // not inside a UTF-8 character
  return text.substr(0, size);
}

}  // namespace

void configure(const Options& options) {
  std::FILE* file = nullptr;
  if (!options.file.empty()) {
    file = std::fopen(options.file.c_str(), "ae");
    QALORA_REQUIRE(file != nullptr, IoError, options.file.string(),
                   ": the log file cannot be opened: ", std::strerror(errno));
  }
  State& s = state();
  std::lock_guard lock(s.mutex);
  if (s.file != nullptr) std::fclose(s.file);
  s.file = file;
  s.options = options;
  current_level = options.level;
}

Level level() { return current_level; }

bool is_terminal() {
  const char* term = std::getenv("TERM");
  return isatty(STDERR_FILENO) == 1 && term != nullptr && std::strcmp(term, "dumb") != 0;
}

bool colored() {
  const Color color = state().options.color;
  if (color != Color::kAuto) return color == Color::kAlways;
  const char* no_color = std::getenv("NO_COLOR");
  return is_terminal() && (no_color == nullptr || *no_color == '\0');
}

void info(const std::string& text) { emit("", "", text, level() != Level::kQuiet); }
void verbose(const std::string& text) {
  if (level() == Level::kVerbose) emit("", "", text, true);
}
void warn(const std::string& text) { emit("warning: ", "\033[33m", text, level() != Level::kQuiet); }
void error(const std::string& text) { emit("error: ", "\033[31m", text, true); }

void live_line(const std::string& text) {
  State& s = state();
  std::lock_guard lock(s.mutex);
  erase_live_line(s);
  if (!text.empty()) {
    std::fputs(fitted(text).c_str(), stderr);
    s.live = true;
  }
  std::fflush(stderr);
}

std::string bold(const std::string& text) { return wrapped("\033[1m", text); }
std::string red(const std::string& text) { return wrapped("\033[31m", text); }
std::string dim(const std::string& text) { return wrapped("\033[2m", text); }

}  // namespace qalora::log
