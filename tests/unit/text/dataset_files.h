// A folder in which tests of data sets put theirs.
#pragma once

#include <gtest/gtest.h>

#include "qalora/core/error.h"
#include "qalora/text/dataset.h"
#include "tiny_tokenizer.h"

namespace qalora::text {

using namespace qalora::test;

inline constexpr const char* kGood = R"({"instruction": "Say hi", "input": "", "output": "hi"})";

class DatasetFiles : public testing::Test {
 protected:
  Dataset open(const std::string& name, const std::string& content, bool skip = false,
               DataFormat format = DataFormat::kAuto) {
    write_file(dir_ / name, content);
    return Dataset(dir_ / name, format, skip);
  }
  // The message about a file that is refused; it names the file.
  std::string error(const std::string& name, const std::string& content, DataFormat format = DataFormat::kAuto) {
    const std::string what = error_of<DataError>([&] { open(name, content, false, format); });
    EXPECT_CONTAINS(what, (dir_ / name).string());
    return what;
  }
  // A good record, the bad one, a good one, as JSON Lines: refused with line 2 and the reason; with skipping two are
  // left.
  void expect_bad_line(const std::string& bad, const std::string& reason) {
    const std::string content = std::string(kGood) + "\n" + bad + "\n" + kGood + "\n";
    EXPECT_CONTAINS(error("a.jsonl", content), "a.jsonl:2: ");
    EXPECT_CONTAINS(error("a.jsonl", content), reason);
    EXPECT_CONTAINS(error("a.jsonl", content), "--skip-bad-records");
    const Dataset data = open("a.jsonl", content, /*skip=*/true);
    EXPECT_EQ(data.size(), 2);
    ASSERT_EQ(data.bad().size(), 1u);
    EXPECT_EQ(data.bad()[0].line, 2);
    EXPECT_CONTAINS(data.bad()[0].reason, reason);
    EXPECT_EQ(data.record(1).output, "hi");
    EXPECT_EQ(data.line(1), 3);
  }
  TempDir dir_;
};

}  // namespace qalora::text
