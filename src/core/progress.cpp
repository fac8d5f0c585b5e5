#include "qalora/core/progress.h"

#include <algorithm>
#include <utility>

#include "qalora/core/format.h"
#include "qalora/core/log.h"

namespace qalora {

namespace {

using Clock = std::chrono::steady_clock;

double seconds_between(Clock::time_point from, Clock::time_point to) {
  return std::chrono::duration<double>(to - from).count();
}

}  // namespace

std::string progress_line(const std::string& what, int64_t done, int64_t total, const std::string& unit, double seconds,
                          const std::string& note) {
  std::string line = what + "  " + format_count(done);
  if (total > 0) line.append("/").append(format_count(total));
  line.append(" ").append(unit);
  if (total > 0) line.append("  ").append(std::to_string(100 * std::min(done, total) / total)).append(" %");
  if (done > 0 && seconds > 0) {
    const double rate = static_cast<double>(done) / seconds;
    const int digits = rate >= 10 ? 0 : rate >= 0.1 ? 1 : 3;
    line.append("  ").append(format_fixed(rate, digits)).append(" ").append(unit).append("/s");
    if (total > done) line.append("  ETA ").append(format_clock(static_cast<double>(total - done) / rate));
  }
  if (!note.empty()) line.append("  ").append(note);
  return line;
}

Progress::Progress(std::string what, int64_t total, std::string unit)
    : what_(std::move(what)),
      unit_(std::move(unit)),
      total_(total),
      start_(Clock::now()),
      last_(start_) {}

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
