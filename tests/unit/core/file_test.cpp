#include "qalora/core/file.h"

#include <sys/stat.h>

#include <chrono>
#include <thread>

#include "file_support.h"
#include "qalora/core/error.h"

namespace qalora {
namespace {

using test::read_file;
using test::TempDir;
using test::write_file;

std::string text_of(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

TEST(MappedFile, MapsTheWholeFile) {
  const TempDir dir;
  write_file(dir / "a", "hello");
  const MappedFile file(dir / "a");
  EXPECT_EQ(text_of(file.bytes()), "hello");
  EXPECT_EQ(file.path(), dir / "a");
  write_file(dir / "b", "hellO");
  EXPECT_NE(text_of(MappedFile(dir / "b").bytes()), "hello");
}

TEST(MappedFile, EmptyFileIsAnEmptySpan) {
  const TempDir dir;
  write_file(dir / "empty", "");
  const MappedFile file(dir / "empty");
  EXPECT_TRUE(file.bytes().empty());
  file.release(file.bytes());
}

TEST(MappedFile, SaysWhatIsWrong) {
  const TempDir dir;
  write_file(dir / "file", "x");
  EXPECT_CONTAINS(error_of<UserError>([&] { MappedFile(dir / "missing"); }),
                  (dir / "missing").string() + ": no such file");
  EXPECT_CONTAINS(error_of<UserError>([&] { MappedFile(dir / "file" / "below"); }), "no such file");
  EXPECT_CONTAINS(error_of<DataError>([&] { MappedFile(dir.path()); }), dir.path().string() + ": is a folder");
  EXPECT_CONTAINS(error_of<DataError>([&] { MappedFile("/dev/null"); }), "/dev/null: is a pipe or a device");
}

TEST(MappedFile, UnreadableFile) {
  const TempDir dir;
  ::chmod(dir.path().c_str(), 0755);
  write_file(dir / "secret", "x");
  ::chmod((dir / "secret").c_str(), 0);
  const std::string said = said_by_nobody([&] { return error_of<DataError>([&] { MappedFile(dir / "secret"); }); });
  EXPECT_CONTAINS(said, (dir / "secret").string() + ": cannot be read: Permission denied");
}

TEST(MappedFile, MovesAndReleases) {
  const TempDir dir;
  std::string content(3 * 65536 + 17, 'x');
  for (size_t i = 0; i < content.size(); ++i) content[i] = static_cast<char>(i * 31 >> 3);
  write_file(dir / "a", content);
  write_file(dir / "b", "other");
  MappedFile file(dir / "a");
  file.release(file.bytes().subspan(5, 100000));  // whole pages inside are dropped and come back from the file
  MappedFile moved(std::move(file));
  EXPECT_TRUE(file.bytes().empty());
  EXPECT_EQ(text_of(moved.bytes()), content);
  moved = MappedFile(dir / "b");
  EXPECT_EQ(text_of(moved.bytes()), "other");
  const MappedFile another(dir / "a");
  EXPECT_CONTAINS(error_of<InternalError>([&] { moved.release(another.bytes()); }), "outside");
}

TEST(TextFile, ReadsWithALimit) {
  const TempDir dir;
  write_file(dir / "a", "12345");
  EXPECT_EQ(read_text_file(dir / "a"), "12345");
  EXPECT_EQ(read_text_file(dir / "a", 5), "12345");
  EXPECT_CONTAINS(error_of<DataError>([&] { read_text_file(dir / "a", 4); }), "larger than the 4 bytes");
  EXPECT_CONTAINS(error_of<DataError>([&] { read_text_file("/dev/zero", 1000); }),
                  "/dev/zero: is larger than the 1000 bytes");
  EXPECT_CONTAINS(error_of<UserError>([&] { read_text_file(dir / "missing"); }), "no such file");
  EXPECT_CONTAINS(error_of<DataError>([&] { read_text_file(dir.path()); }), "is a folder");
  EXPECT_FALSE(read_text_file("/proc/self/status").empty()) << "files that say they are empty are read to their end";
}

TEST(CopyFile, CopiesOrSaysWhichSideFailed) {
  const TempDir dir;
  const std::string content(200000, 'c');
  write_file(dir / "from", content);
  copy_file_synced(dir / "from", dir / "to");
  EXPECT_EQ(read_file(dir / "to"), content);
  EXPECT_CONTAINS(error_of<UserError>([&] { copy_file_synced(dir / "missing", dir / "to"); }),
                  (dir / "missing").string());
  EXPECT_EQ(read_file(dir / "to"), content);
  EXPECT_CONTAINS(error_of<IoError>([&] { copy_file_synced(dir / "from", dir / "no" / "to"); }),
                  (dir / "no" / "to").string());
}

TEST(Pipes, AreNoFilesAndTheirWriterMayComeLater) {
  const TempDir dir;
  ASSERT_EQ(::mkfifo((dir / "pipe").c_str(), 0600), 0);
  EXPECT_CONTAINS(error_of<DataError>([&] { MappedFile(dir / "pipe"); }), "is a pipe");
  std::thread writer([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    write_file(dir / "pipe", "late");
  });
  EXPECT_EQ(read_text_file(dir / "pipe"), "late");
  writer.join();
}

TEST(Pipes, AreReadToTheirEnd) {
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  std::thread writer([&] {
    for (const std::string_view part : {"first ", "second"}) {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));  // the reader finds nothing yet and has to wait
      ASSERT_EQ(::write(ends[1], part.data(), part.size()), static_cast<ssize_t>(part.size()));
    }
    ::close(ends[1]);
  });
  EXPECT_EQ(read_text_file("/dev/fd/" + std::to_string(ends[0])), "first second");
  writer.join();
  ::close(ends[0]);
}

TEST(KindOf, LooksThroughLinksAndSaysWhatItCannotLookAt) {
  const TempDir dir;
  write_file(dir / "a", "1");
  fs::create_symlink(dir / "a", dir / "link");
  fs::create_symlink(dir / "nowhere", dir / "dangling");
  fs::create_symlink(dir / "loop", dir / "loop");
  EXPECT_EQ(kind_of(dir / "a"), fs::file_type::regular);
  EXPECT_EQ(kind_of(dir / "link"), fs::file_type::regular);
  EXPECT_EQ(kind_of(dir.path()), fs::file_type::directory);
  EXPECT_EQ(kind_of(dir / "dangling"), fs::file_type::not_found);
  EXPECT_EQ(kind_of(dir / "a" / "b"), fs::file_type::not_found);
  EXPECT_CONTAINS(error_of<DataError>([&] { kind_of(dir / "loop"); }), (dir / "loop").string());
  EXPECT_CONTAINS(error_of<DataError>([&] { kind_of(dir / std::string(300, 'n')); }), "File name too long");
  EXPECT_EQ(list_folder(dir.path()), (Names{"a", "dangling", "link", "loop"}));
  EXPECT_CONTAINS(error_of<DataError>([&] { list_folder(dir / "a"); }), "cannot be listed");
}

TEST(SameFile, SeesThroughLinks) {
  const TempDir dir;
  write_file(dir / "a", "1");
  write_file(dir / "b", "1");
  fs::create_symlink(dir / "a", dir / "link");
  EXPECT_TRUE(same_file(dir / "a", dir / "link"));
  EXPECT_TRUE(same_file(dir.path(), dir / "."));
  EXPECT_FALSE(same_file(dir / "a", dir / "b"));
  EXPECT_FALSE(same_file(dir / "a", dir / "missing"));
  EXPECT_FALSE(same_file(dir / "missing", dir / "missing"));
}

}  // namespace
}  // namespace qalora
