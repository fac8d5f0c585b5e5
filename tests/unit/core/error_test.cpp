#include "qalora/core/error.h"

#include <gtest/gtest.h>

#include <csignal>

namespace qalora {
namespace {

TEST(Error, CarriesTheProcesssExitCode) {
  EXPECT_EQ(static_cast<int>(UserError("x").code()), 2);
  EXPECT_EQ(static_cast<int>(DataError("x").code()), 3);
  EXPECT_EQ(static_cast<int>(MemoryError("x").code()), 4);
  EXPECT_EQ(static_cast<int>(IoError("x").code()), 5);
  EXPECT_EQ(static_cast<int>(DivergedError("x").code()), 6);
  EXPECT_EQ(static_cast<int>(VerificationError("x").code()), 7);
  EXPECT_EQ(static_cast<int>(InternalError("x").code()), 1);
  EXPECT_EQ(static_cast<int>(Interrupted(SIGINT).code()), 130);
  EXPECT_EQ(static_cast<int>(Interrupted(SIGTERM).code()), 143);
}

TEST(Error, RequireJoinsItsMessage) {
  EXPECT_NO_THROW(QALORA_REQUIRE(1 + 1 == 2, DataError, "not seen"));
  try {
    QALORA_REQUIRE(1 + 1 == 3, DataError, "file.bin: expected ", 3, ", got ", 2.5, std::string(" here"));
    FAIL() << "did not throw";
  } catch (const DataError& error) {
    EXPECT_STREQ(error.what(), "file.bin: expected 3, got 2.5 here");
  }
}

TEST(Error, CheckNamesTheCondition) {
  const int rows = -1;
  try {
    QALORA_CHECK(rows >= 0, "rows is ", rows);
    FAIL() << "did not throw";
  } catch (const InternalError& error) {
    EXPECT_STREQ(error.what(), "internal error: rows >= 0 does not hold: rows is -1");
  }
}

}  // namespace
}  // namespace qalora
