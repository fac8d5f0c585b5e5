#include "qalora/train/run_folder.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <nlohmann/json.hpp>

#include "qalora/core/error.h"
#include "qalora/train/prepare.h"
#include "support/support.h"

namespace qalora::train {
namespace {

const std::string kToml = std::string("# ") + RunFolder::kConfigHeading + "\nmethod = \"qalora\"\n";

class RunFolderTest : public ::testing::Test {
 protected:
  fs::path out() const { return dir_ / "run"; }
  void write(const std::string& name, const std::string& content = "x") const {
    test::write_file(out() / name, content);
  }
  bool exists(const std::string& name) const { return fs::exists(out() / name); }

  test::TempDir dir_;
};

template <typename F>
std::string reason(F call) {
  try {
    call();
  } catch (const Error& error) {
    return message(static_cast<int>(error.code()), " ", error.what());
  }
  return "";
}

TEST_F(RunFolderTest, SomebodyElsesFolderIsLeftAlone) {
  write("model/config.json");
  write("config.toml", "steps = 4\n");  // a configuration, but no run's
  write("checkpoints/notes.txt");
  for (const bool force : {false, true}) {
    EXPECT_THROW(RunFolder(out(), false, force, kToml), UserError);
    EXPECT_THROW(RunFolder(out(), true, force, kToml), UserError);
    for (const char* name : {"model/config.json", "config.toml", "checkpoints/notes.txt"})
      EXPECT_TRUE(exists(name)) << name;
  }
  fs::remove_all(out());
  fs::create_directories(out());
  RunFolder(out(), false, false, kToml);  // an empty one will do
  EXPECT_EQ(test::read_file(out() / "config.toml"), kToml);
  EXPECT_TRUE(exists("checkpoints"));
}

TEST_F(RunFolderTest, TwoRunsDoNotShareAFolder) {
  {
    const RunFolder first(out(), false, false, kToml);
    for (const bool resume : {true, false}) {
      EXPECT_NE(
          reason([&] { RunFolder(out(), resume, true, kToml); }).find("another process is training in this folder"),
          std::string::npos);
    }
  }
  EXPECT_EQ(reason([&] { RunFolder(out(), true, false, kToml); }), "");
}

TEST_F(RunFolderTest, ForceRemovesWhatTheOldRunWroteAndNothingElse) {
  RunFolder(out(), false, false, kToml);
  for (const char* name : {"adapter/a", "best/a", "checkpoints/step-3/state.json", "metrics.jsonl", "loss.svg"})
    write(name);
  write("notes.txt");
  write("model/config.json");  // this run trains an adapter: the folder is somebody else's
  EXPECT_THROW(RunFolder(out(), false, false, kToml), UserError);
  EXPECT_TRUE(exists("adapter/a"));
  RunFolder(out(), false, true, std::string("# ") + RunFolder::kConfigHeading + "\nmethod = \"full\"\n");
  for (const char* name : {"adapter", "best", "checkpoints/step-3", "metrics.jsonl", "loss.svg"})
    EXPECT_FALSE(exists(name)) << name;
  EXPECT_TRUE(exists("notes.txt"));
  EXPECT_TRUE(exists("model/config.json"));
  RunFolder(out(), false, true, kToml);
  EXPECT_FALSE(exists("model"));  // the run before this one trained a whole model
}

TEST_F(RunFolderTest, ARunThatSavedNothingMayBeginAgain) {
  EXPECT_FALSE(RunFolder(out(), false, false, kToml).holds_work());
  write("metrics.jsonl", "{}\n");
  write("checkpoints/step-1.qalora-tmp-9-1f/a");
  EXPECT_FALSE(RunFolder(out(), false, false, kToml).holds_work());
  EXPECT_FALSE(exists("metrics.jsonl"));
  for (const char* work : {"checkpoints/step-1/state.json", "checkpoints/step-1.qalora-old-9-1f/a", "best/best.json",
                           "adapter/a", "model/a"}) {
    write(work);
    EXPECT_NE(reason([&] { RunFolder(out(), false, false, kToml); }).find("holds a run already"), std::string::npos)
        << work;
    EXPECT_TRUE(exists(work));
    fs::remove_all((out() / work).parent_path());
  }
  EXPECT_EQ(reason([&] { RunFolder(out(), false, false, kToml); }), "");
}

TEST_F(RunFolderTest, RoomIsAskedForBeforeThereIsAFolder) {
  TrainConfig config;
  config.out = out();
  EXPECT_NO_THROW(require_room(config, 1000));
  EXPECT_NE(
      reason([&] { require_room(config, int64_t{1} << 50); }).find("5 " + (out() / "checkpoints: needs 27").string()),
      std::string::npos);
  EXPECT_FALSE(fs::exists(out()));
}

TEST_F(RunFolderTest, OverlapsWithInputsAreRefused) {
  fs::create_directories(dir_ / "base/inner");
  fs::create_directory_symlink(dir_ / "base", dir_ / "link");
  const auto refused = [&](const std::string& path) {
    return !reason([&] { RunFolder::require_apart(dir_ / path, {"", dir_ / "base"}); }).empty();
  };
  EXPECT_TRUE(refused("base"));
  EXPECT_TRUE(refused("base/"));
  EXPECT_TRUE(refused("./base/inner/.."));
  EXPECT_TRUE(refused("link"));
  EXPECT_TRUE(refused(""));  // holds it
  EXPECT_TRUE(refused("base/inner/run"));
  EXPECT_FALSE(refused("run"));
  EXPECT_FALSE(refused("base2"));
  EXPECT_FALSE(refused("base-run"));
}

TEST_F(RunFolderTest, ImpossiblePathsAreNamedAtOnce) {
  test::write_file(dir_ / "file.json", "{}");
  const auto tried = [&](const fs::path& path) {
    return reason([&] { RunFolder::require_usable(path, false, false); });
  };
  EXPECT_NE(tried(dir_ / std::string(300, 'x')).find("too long"), std::string::npos)
      << tried(dir_ / std::string(300, 'x'));
  EXPECT_EQ(tried(dir_ / std::string(300, 'x'))[0], '5');
  EXPECT_NE(tried(dir_ / "file.json/x").find("file.json: is a file"), std::string::npos) << tried(dir_ / "file.json/x");
  EXPECT_EQ(tried(dir_ / "file.json")[0], '2');
  EXPECT_EQ(tried("/proc/qalora/run")[0], '5');  // even root cannot write there
  EXPECT_EQ(tried(dir_ / "new/deep/run"), "");
  EXPECT_FALSE(fs::exists(dir_ / "new"));
  EXPECT_EQ(std::distance(fs::directory_iterator(dir_.path()), fs::directory_iterator()), 1);  // the probe is gone too
}

TEST_F(RunFolderTest, LeftoversOfAKilledRunGo) {
  RunFolder(out(), false, false, kToml);
  for (const char* name :
       {"checkpoints/step-61.qalora-tmp-9820-1f/a", ".loss.svg.qalora-tmp-9818-1f", "adapter.qalora-tmp-77-1f/a",
        "best.qalora-old-9-1f/old", "checkpoints/step-4.qalora-old-9-1f/a", "best/new", "notes.qalora-tmp-5-1f",
        "adapter.old-thing"}) {
    write(name);
  }
  RunFolder(out(), true, false, kToml);
  for (const char* name : {"checkpoints/step-61.qalora-tmp-9820-1f", ".loss.svg.qalora-tmp-9818-1f",
                           "adapter.qalora-tmp-77-1f", "best.qalora-old-9-1f", "checkpoints/step-4.qalora-old-9-1f"}) {
    EXPECT_FALSE(exists(name)) << name;
  }
  EXPECT_TRUE(exists("best/new"));
  EXPECT_TRUE(exists("checkpoints/step-4/a"));   // killed between two renames: the only copy gets its name back
  EXPECT_TRUE(exists("notes.qalora-tmp-5-1f"));  // not ours
  EXPECT_TRUE(exists("adapter.old-thing"));
}

TEST_F(RunFolderTest, CheckpointsArePrunedFromTheOldest) {
  const RunFolder folder(out(), false, false, kToml);
  for (const int step : {2, 10, 4}) write("checkpoints/step-" + std::to_string(step) + "/state.json");
  write("checkpoints/step-x/state.json");
  EXPECT_EQ(folder.checkpoints(), (std::vector<int64_t>{2, 4, 10}));
  folder.prune_checkpoints(0);
  EXPECT_EQ(folder.checkpoints().size(), 3u);
  folder.prune_checkpoints(2);
  EXPECT_EQ(folder.checkpoints(), (std::vector<int64_t>{4, 10}));
  folder.remove_checkpoints_after(4);
  EXPECT_EQ(folder.checkpoints(), (std::vector<int64_t>{4}));
}

TEST_F(RunFolderTest, MetricsEndWhereTheRunIsResumed) {
  const RunFolder folder(out(), false, false, kToml);
  for (int step = 1; step <= 4; ++step) folder.append_metrics({{"event", "step"}, {"step", step}});
  test::write_file(out() / "metrics.jsonl",
                   test::read_file(out() / "metrics.jsonl") + "{\"event\": \"st");  // half a line
  EXPECT_EQ(folder.metrics().size(), 4u);
  folder.truncate_metrics(2, false);
  ASSERT_EQ(folder.metrics().size(), 2u);
  EXPECT_EQ(folder.metrics().back().at("step"), 2);
  folder.append_metrics({{"event", "eval"}, {"step", 2}});
  folder.truncate_metrics(2, false);
  EXPECT_EQ(folder.metrics().size(), 3u);
  folder.truncate_metrics(2, true);
  EXPECT_EQ(folder.metrics().size(), 2u);
}

}  // namespace
}  // namespace qalora::train
