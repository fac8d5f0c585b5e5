#include "qalora/core/progress.h"

#include <gtest/gtest.h>

namespace qalora {
namespace {

TEST(Progress, Line) {
  EXPECT_EQ(progress_line("quantising", 34, 225, "layers", 16.19, ""),
            "quantising  34/225 layers  15 %  2.1 layers/s  ETA 1:31");
  EXPECT_EQ(progress_line("scoring", 0, 10, "questions", 5, ""), "scoring  0/10 questions  0 %") << "no rate yet";
  EXPECT_EQ(progress_line("scoring", 10, 10, "questions", 5, "done"),
            "scoring  10/10 questions  100 %  2.0 questions/s  done");
  EXPECT_EQ(progress_line("reading", 5000, 0, "lines", 2, ""), "reading  5,000 lines  2500 lines/s")
      << "total not known";
  EXPECT_EQ(progress_line("training", 1, 100, "steps", 80, "loss 1.2"),
            "training  1/100 steps  1 %  0.013 steps/s  ETA 2:12:00  loss 1.2");
}

TEST(Progress, NothingBeforeTwoSeconds) {
  testing::internal::CaptureStderr();
  {
    Progress progress("working", 3, "steps");
    for (int i = 0; i < 3; ++i) progress.add();
    progress.finish();
    progress.finish();
  }
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "");
}

}  // namespace
}  // namespace qalora
