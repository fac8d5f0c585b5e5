#include "qalora/core/progress.h"

#include <algorithm>
#include <utility>

#include "qalora/core/format.h"
#include "qalora/core/log.h"

namespace qalora {

namespace {

using Clock = std::chrono::steady_clock;

double seconds_between(Clock::time_point from, Clock::time_point to) { return std::chrono::duration<double>(to - from).count(); }

}  // namespace

std::string progress_line(const std::string& what, int64_t done, int64_t total, const std::string& unit, double seconds,
                          const std::string& note) {
  std::string line = what + "  " + format_count(done) + (total > 0 ? "/" + format_count(total) : "") + " " + unit;
  if (total > 0) line += "  " + std::to_string(100 * done / total) + " %";
  if (done > 0 && seconds > 0) {
    const double rate = static_cast<double>(done) / seconds;
    line += "  " + format_fixed(rate, rate < 10 ? (rate < 0.1 ? 3 : 1) : 0) + " " + unit + "/s";
    if (total > done) line += "  ETA " + format_clock(static_cast<double>(total - done) / rate);
  }
  return note.empty() ? line : line + "  " + note;
}

Progress::Progress(std::string what, int64_t total, std::string unit)
    : what_(std::move(what)), unit_(std::move(unit)), total_(total), start_(Clock::now()), last_(start_) {}

Progress::~Progress() {
  if (shown_ && !finished_ && log::is_terminal()) log::live_line("");
}

void Progress::update(int64_t done, const std::string& note) {
  constexpr double kQuietStart = 2, kRedraw = 0.1, kPlainLine = 10;
  done_ = done;
  if (finished_ || log::level() == log::Level::kQuiet) return;
  const auto now = Clock::now();
  const double seconds = seconds_between(start_, now);
  const bool terminal = log::is_terminal();
  if (seconds < kQuietStart || seconds_between(last_, now) < (terminal ? kRedraw : kPlainLine)) return;
  last_ = now;
  shown_ = true;
  const std::string line = progress_line(what_, done_, total_, unit_, seconds, note);
  terminal ? log::live_line(line) : log::info(line);
}

void Progress::finish() {
  if (std::exchange(finished_, true) || !shown_) return;
  if (log::is_terminal()) log::live_line("");
  const double seconds = seconds_between(start_, Clock::now());
  log::info(what_ + "  " + format_count(done_) + " " + unit_ + " in " + format_duration(seconds));
}

}  // namespace qalora
