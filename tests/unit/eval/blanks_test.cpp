#include "qalora/eval/blanks.h"

#include <gtest/gtest.h>

namespace qalora::eval {
namespace {

TEST(Blanks, CountsBytesAtBothEnds) {
  EXPECT_EQ(leading_blanks(" \t\n a "), 4u);
  EXPECT_EQ(trailing_blanks(" a \r\n"), 3u);
  EXPECT_EQ(leading_blanks("a"), 0u);
  EXPECT_EQ(trailing_blanks(""), 0u);
  EXPECT_EQ(leading_blanks("   "), 3u);
}

TEST(Blanks, KnowsPythonsWiderOnes) {
  EXPECT_EQ(trailing_blanks("that\xC2\x85"), 2u);  // occurs in MMLU's sociology
  EXPECT_EQ(leading_blanks("\xE3\x80\x80 \xC2\xA0x"), 6u);
  EXPECT_EQ(leading_blanks("\x1Cx"), 1u);
  EXPECT_EQ(leading_blanks("\xE2\x80\x8Bx"), 0u);  // zero width space is none for Python either
}

}  // namespace
}  // namespace qalora::eval
