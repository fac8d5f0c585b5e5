#include <gtest/gtest.h>

#include "qalora/cli/command.h"
#include "qalora/core/error.h"
#include "support/support.h"

namespace qalora::cli {
namespace {

TEST(RequireRoom, RefusesWhatTheDiskCannotHold) {
  const test::TempDir dir;
  EXPECT_NO_THROW(require_room(dir / "a.gguf", 1));
  EXPECT_THROW(require_room(dir / "a.gguf", UINT64_MAX), IoError);
  EXPECT_NO_THROW(require_room(dir / "nowhere/a.gguf", UINT64_MAX)) << "what cannot be asked is left to the writing";
  EXPECT_NO_THROW(require_room("a.gguf", 1));
}

}  // namespace
}  // namespace qalora::cli
