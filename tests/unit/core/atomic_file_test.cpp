#include <sys/resource.h>
#include <sys/stat.h>

#include <csignal>

#include "file_support.h"
#include "qalora/core/error.h"

namespace qalora {
namespace {

using test::read_file;
using test::TempDir;
using test::write_file;

// A file cannot grow beyond so many bytes while this lives: what a full disk does to a write, without filling a disk.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) : handler_(std::signal(SIGXFSZ, SIG_IGN)) {
    ::getrlimit(RLIMIT_FSIZE, &before_);
    struct rlimit limit = before_;
    limit.rlim_cur = bytes;
    ::setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FileSizeLimit() {
    ::setrlimit(RLIMIT_FSIZE, &before_);
    std::signal(SIGXFSZ, handler_);
  }

 private:
  struct rlimit before_ = {};
  void (*handler_)(int);
};

std::vector<std::string> names_in(const fs::path& folder) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder)) names.push_back(entry.path().filename());
  std::sort(names.begin(), names.end());
  return names;
}

TEST(AtomicFile, NothingIsThereBeforeTheCommit) {
  const TempDir dir;
  const fs::path path = dir / "out";
  {
    AtomicFile file(path);
    file.write("half");
    EXPECT_FALSE(fs::exists(path));
  }
  EXPECT_EQ(names_in(dir.path()), Names{}) << "an abandoned temporary must be removed";
  AtomicFile file(path);
  file.write("one ");
  file.write(std::as_bytes(std::span("two", 3)));
  file.commit();
  EXPECT_EQ(read_file(path), "one two");
  EXPECT_EQ(names_in(dir.path()), Names{"out"});
}

TEST(AtomicFile, ReplacesOnCommitOnly) {
  const TempDir dir;
  write_file(dir / "out", "old");
  {
    AtomicFile file(dir / "out");
    file.write("new");
    EXPECT_EQ(read_file(dir / "out"), "old");
  }
  EXPECT_EQ(read_file(dir / "out"), "old");
  write_text_file(dir / "out", "new");
  EXPECT_EQ(read_file(dir / "out"), "new");
}

TEST(AtomicFile, FullDiskLeavesTheOldFile) {
  const TempDir dir;
  write_file(dir / "out", "old");
  const std::string large(100000, 'n');
  std::string said;
  {
    const FileSizeLimit limit(4096);
    said = error_of<IoError>([&] { write_text_file(dir / "out", large); });
  }
  EXPECT_CONTAINS(said, (dir / "out").string() + ": cannot be written: File too large");
  EXPECT_EQ(read_file(dir / "out"), "old");
  EXPECT_EQ(names_in(dir.path()), Names{"out"});
  write_text_file(dir / "out", large);  // the same write without the limit
  EXPECT_EQ(read_file(dir / "out"), large);
}

TEST(AtomicFile, WhereItCannotBe) {
  const TempDir dir;
  write_file(dir / "file", "x");
  EXPECT_CONTAINS(error_of<IoError>([&] { AtomicFile(dir / "no" / "file"); }),
                  (dir / "no" / "file").string() + ": cannot be written");
  EXPECT_CONTAINS(error_of<IoError>([&] { AtomicFile(dir / "file" / "below"); }),
                  (dir / "file").string() + " is a file, expected a folder");
  EXPECT_CONTAINS(error_of<IoError>([&] { AtomicFile(dir.path()); }), "is a folder");
  EXPECT_CONTAINS(error_of<IoError>([&] { AtomicFile(dir / std::string(300, 'n')); }), "File name too long");
}

TEST(AtomicFile, ReadOnlyFolder) {
  const TempDir dir;
  write_file(dir / "out", "old");
  ::chmod(dir.path().c_str(), 0555);
  EXPECT_CONTAINS(said_by_nobody([&] { return error_of<IoError>([&] { AtomicFile(dir / "out"); }); }),
                  "Permission denied");
  EXPECT_CONTAINS(said_by_nobody([&] { return error_of<IoError>([&] { AtomicFolder(dir / "new", false, 1); }); }),
                  "Permission denied");
  EXPECT_CONTAINS(said_by_nobody([&] { return error_of<IoError>([&] { AtomicFolder(dir / "a/new", false, 1); }); }),
                  "Permission denied");
  ::chmod(dir.path().c_str(), 0700);
  EXPECT_EQ(read_file(dir / "out"), "old");
}

TEST(AtomicFile, UseAfterCommitIsOurMistake) {
  const TempDir dir;
  AtomicFile file(dir / "out");
  file.commit();
  EXPECT_CONTAINS(error_of<InternalError>([&] { file.write("x"); }), "after its commit");
  EXPECT_CONTAINS(error_of<InternalError>([&] { file.commit(); }), "twice");
  EXPECT_EQ(read_file(dir / "out"), "");
}

TEST(AtomicFolder, AppearsWhole) {
  const TempDir dir;
  const fs::path path = dir / "parent" / "out";  // missing parents are made
  {
    AtomicFolder folder(path, false);
    write_file(folder.staging() / "a", "1");
    EXPECT_FALSE(fs::exists(path));
  }
  EXPECT_EQ(names_in(dir.path()), Names{}) << "abandoned staging must be removed, with the parent that was made for it";
  AtomicFolder folder(path, false);
  write_file(folder.staging() / "a", "1");
  write_file(folder.staging() / "deep" / "b", "2");
  folder.commit();
  EXPECT_EQ(read_file(path / "a"), "1");
  EXPECT_EQ(read_file(path / "deep" / "b"), "2");
  EXPECT_EQ(names_in(dir / "parent"), Names{"out"});
  EXPECT_CONTAINS(error_of<InternalError>([&] { folder.commit(); }), "twice");
}

TEST(AtomicFolder, ReplacesOnlyWhenTold) {
  const TempDir dir;
  write_file(dir / "out" / "old", "1");
  EXPECT_CONTAINS(error_of<UserError>([&] { AtomicFolder(dir / "out", false); }),
                  (dir / "out").string() + ": exists already");
  {
    AtomicFolder abandoned(dir / "out", true);
    write_file(abandoned.staging() / "new", "2");
  }
  EXPECT_EQ(names_in(dir / "out"), Names{"old"});
  AtomicFolder folder(dir / "out", true);
  write_file(folder.staging() / "new", "2");
  EXPECT_EQ(names_in(dir / "out"), Names{"old"});
  folder.commit();
  EXPECT_EQ(names_in(dir / "out"), Names{"new"});
  EXPECT_EQ(names_in(dir.path()), Names{"out"});
}

TEST(AtomicFolder, ReplacesAFileAndALinkButNotWhatTheLinkNames) {
  const TempDir dir;
  write_file(dir / "file", "x");
  AtomicFolder(dir / "file", true).commit();
  EXPECT_TRUE(fs::is_directory(dir / "file"));
  write_file(dir / "kept" / "a", "1");
  fs::create_directory_symlink(dir / "kept", dir / "link");
  AtomicFolder(dir / "link", true).commit();
  EXPECT_FALSE(fs::is_symlink(dir / "link"));
  EXPECT_EQ(names_in(dir / "kept"), Names{"a"});
  fs::create_directory_symlink(dir / "nowhere", dir / "dangling");
  error_of<UserError>([&] { AtomicFolder(dir / "dangling", false); });
}

TEST(AtomicFolder, SlashesAtTheEndDoNotMatter) {
  const TempDir dir;
  AtomicFolder folder(fs::path((dir / "out").string() + "/"), false);
  write_file(folder.staging() / "a", "1");
  folder.commit();
  EXPECT_EQ(names_in(dir.path()), Names{"out"});
}

TEST(AtomicFolder, CreatedMeanwhileIsNotOverwritten) {
  const TempDir dir;
  {
    AtomicFolder folder(dir / "out", false);
    write_file(dir / "out" / "theirs", "1");
    EXPECT_CONTAINS(error_of<UserError>([&] { folder.commit(); }), "somebody created it meanwhile");
  }
  EXPECT_EQ(names_in(dir / "out"), Names{"theirs"});
  EXPECT_EQ(names_in(dir.path()), Names{"out"});
}

TEST(AtomicFolder, FailedCommitLeavesTheOldFolder) {
  const TempDir dir;
  write_file(dir / "out" / "old", "1");
  {
    AtomicFolder folder(dir / "out", true);
    fs::rename(folder.staging(), dir / "gone");
    EXPECT_CONTAINS(error_of<IoError>([&] { folder.commit(); }), (dir / "out").string() + ": cannot be synced");
  }
  EXPECT_EQ(names_in(dir / "out"), Names{"old"});
  EXPECT_EQ(names_in(dir.path()), (Names{"gone", "out"}));
}

// What kill -9 leaves: a staging folder whose owner is gone. One that is in use stays.
TEST(AtomicFolder, RemovesWhatAKilledProcessLeft) {
  const TempDir dir;
  const std::string left = "out" + std::string(kStagingMark) + "1-0000000a";
  write_file(dir / left / "half", "1");
  write_file(dir / ("other" + std::string(kStagingMark) + "1-0000000a") / "half", "1");
  AtomicFolder first(dir / "out", true);
  EXPECT_FALSE(fs::exists(dir / left));
  EXPECT_EQ(names_in(dir.path()).size(), 2u) << "that of another output is left alone";
  AtomicFolder second(dir / "out", true);
  EXPECT_TRUE(fs::exists(first.staging()));
  EXPECT_NE(first.staging(), second.staging());
  write_file(first.staging() / "a", "1");
  first.commit();
  write_file(second.staging() / "b", "1");
  second.commit();
  EXPECT_EQ(names_in(dir / "out"), Names{"b"});
  EXPECT_EQ(names_in(dir.path()).size(), 2u);
}

TEST(AtomicFolder, FoldersAboveGoAgainUnlessSomebodyUsesThem) {
  const TempDir dir;
  { const AtomicFolder folder(dir / "a/b/out", false); }
  EXPECT_EQ(names_in(dir.path()), Names{});
  EXPECT_THROW(AtomicFolder(dir / "a/b/out", false, uint64_t{1} << 62), IoError);
  EXPECT_EQ(names_in(dir.path()), Names{});
  {
    const AtomicFolder folder(dir / "a/b/out", false);
    write_file(dir / "a/theirs", "1");
  }
  EXPECT_EQ(names_in(dir / "a"), Names{"theirs"});
}

TEST(AtomicFolder, SaysWhyAPlaceCannotBeWritten) {
  for (const char* path : {"/proc/out", "/proc/x/out"}) {
    const std::string said = error_of<IoError>([&] { AtomicFolder(path, false, 1); });
    EXPECT_CONTAINS(said, "No such file or directory");
    EXPECT_EQ(said.find("free"), std::string::npos) << said;
  }
}

TEST(AtomicFolder, NameTooLong) {
  const TempDir dir;
  EXPECT_CONTAINS(error_of<IoError>([&] { AtomicFolder(dir / std::string(300, 'n'), false); }), "File name too long");
}

TEST(AtomicFolder, NeverReplacesTheCurrentFolderOrOneAboveIt) {
  for (const fs::path& path : {fs::path("."), fs::path(".."), fs::path("/"), fs::current_path()}) {
    EXPECT_CONTAINS(error_of<UserError>([&] { AtomicFolder(path, true); }), "will not be replaced");
  }
}

TEST(AtomicFolder, AsksForRoomFirst) {
  const TempDir dir;
  const std::string said = error_of<IoError>([&] { AtomicFolder(dir / "out", false, uint64_t{1} << 62); });
  EXPECT_CONTAINS(said, (dir / "out").string() + ": needs 4.61 EB, but the disk has only");
  EXPECT_EQ(names_in(dir.path()), Names{});
  AtomicFolder(dir / "out", false, 1).commit();
  EXPECT_TRUE(fs::is_directory(dir / "out"));
}

TEST(AtomicFolder, ParentCannotBeMade) {
  const TempDir dir;
  write_file(dir / "file", "x");
  EXPECT_CONTAINS(error_of<IoError>([&] { AtomicFolder(dir / "file" / "out", false); }), (dir / "file").string());
}

}  // namespace
}  // namespace qalora
