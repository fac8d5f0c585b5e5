#include "../../../src/cli/inspect_gguf.h"

#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "support/gguf_bytes.h"
#include "support/support.h"

namespace qalora::cli {
namespace {

TEST(InspectGguf, NumbersThatNoReaderTakesAreShown) {
  const test::TempDir dir;
  test::GgufBytes file;
  file.text("general.architecture", "none").f32("a.nan", NAN).f32("a.half", 0.5F);
  file.entry("a.large", 10, test::raw(UINT64_MAX))
      .entry("a.endless", 12, test::raw(HUGE_VAL))
      .entry("a.small", 11, test::raw(int64_t{-7}));
  test::write_file(dir / "m.gguf", file.bytes());
  const nlohmann::json metadata = inspect_gguf(dir / "m.gguf")["metadata"];
  EXPECT_EQ(metadata["a.nan"], "nan");
  EXPECT_EQ(metadata["a.endless"], "inf");
  EXPECT_EQ(metadata["a.large"], UINT64_MAX);
  EXPECT_EQ(metadata["a.half"], 0.5);
  EXPECT_EQ(metadata["a.small"], -7);
}

}  // namespace
}  // namespace qalora::cli
