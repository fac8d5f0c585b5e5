// Messages for the person, on stderr; results go to stdout and never through here.
#pragma once

#include <filesystem>
#include <string>

namespace qalora::log {

enum class Level { kQuiet, kNormal, kVerbose };
enum class Color { kAuto, kAlways, kNever };

struct Options {
  Level level = Level::kNormal;
  Color color = Color::kAuto;
  std::filesystem::path file;  // empty: none; a copy of every message, with a time stamp
};

void configure(const Options& options);  // IoError when the log file cannot be opened
Level level();
bool is_terminal();  // stderr is a terminal that can redraw a line
bool colored();

void info(const std::string& text);     // unless quiet
void verbose(const std::string& text);  // only with -v
void warn(const std::string& text);     // unless quiet
void error(const std::string& text);    // always

// Redraws the one line that lives below the messages of a terminal; "" takes it away. Messages push it aside. Progress
// uses it.
void live_line(const std::string& text);

// Text wrapped in an ANSI code where colours are on: bold("x"), red("x").
std::string bold(const std::string& text);
std::string red(const std::string& text);
std::string dim(const std::string& text);

}  // namespace qalora::log
