// One line that says how far a long job is: "quantising  34/225 layers  15 %  2.1 layers/s  ETA 1:31".
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace qalora {

// The line itself: done of total after so many seconds. The rate, and so the ETA, is the whole job's, not the last
// moment's.
std::string progress_line(const std::string& what, int64_t done, int64_t total, const std::string& unit, double seconds,
                          const std::string& note);

class Progress {
 public:
  // unit: plural noun for the count ("layers", "questions"). Nothing is printed before two seconds have passed, nor
  // when quiet. On a terminal the line redraws; elsewhere one plain line appears every ten seconds.
  Progress(std::string what, int64_t total, std::string unit);
  ~Progress();  // clears the live line

  // done: so many of total. note: free text at the end of the line ("loss 1.234").
  void update(int64_t done, const std::string& note = "");
  void add(int64_t count = 1) { update(done_ + count); }
  void finish();

 private:
  std::string what_, unit_;
  int64_t total_, done_ = 0;
  std::chrono::steady_clock::time_point start_, last_;
  bool shown_ = false;
  bool finished_ = false;
};

}  // namespace qalora
