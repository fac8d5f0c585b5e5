// Files: read through a map, written under a temporary name, synced, then renamed. What was there before stays until
// the rename, so a crash, a full disk or a signal leaves either the old file or the new one, never half of one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace qalora {

namespace fs = std::filesystem;

// A read-only map of a whole regular file. Throws UserError when the path does not exist, DataError when it is a folder
// or cannot be read. An empty file maps to an empty span.
class MappedFile {
 public:
  explicit MappedFile(const fs::path& path);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::span<const std::byte> bytes() const { return {data_, size_}; }
  const fs::path& path() const { return path_; }

  // Tells the kernel that these bytes are not needed again soon: a file larger than memory can be walked through.
  void release(std::span<const std::byte> part) const;

 private:
  fs::path path_;
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
};

// A file being written. commit() syncs and renames it to `path`; without commit() the destructor removes the temporary.
// Every failure is an IoError that names `path` and the system's reason.
class AtomicFile {
 public:
  explicit AtomicFile(const fs::path& path);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write(std::span<const std::byte> bytes);
  void write(std::string_view text);
  void commit();

 private:
  void start_writeback();
  fs::path path_, temporary_;
  int descriptor_ = -1;
  int64_t written_ = 0, started_ = 0;  // bytes
};

// A folder being written: files go to staging(), commit() syncs them and puts the whole folder at `path`. With
// `replace` an existing `path` and the new folder change places in one step; a file system that cannot do so gets two
// renames, and a kill between them leaves the old folder as `path`.qalora-old-*. Without `replace` an existing `path`
// is a UserError in the constructor. `required_bytes` > 0: fails at once with IoError when the disk has less room than
// that. Folders above `path` are made, and removed again when nothing is committed. What a killed process left of the
// same `path` is removed first.
class AtomicFolder {
 public:
  AtomicFolder(const fs::path& path, bool replace, uint64_t required_bytes = 0);
  ~AtomicFolder();
  AtomicFolder(const AtomicFolder&) = delete;
  AtomicFolder& operator=(const AtomicFolder&) = delete;

  const fs::path& staging() const { return staging_; }
  void commit();

 private:
  void prepare(uint64_t required_bytes);
  void discard();

  fs::path path_, staging_;
  std::vector<fs::path> made_;  // folders above `path` that were not there, the innermost first
  int lock_ = -1;               // held while we live: tells our staging folder from an abandoned one
  bool replace_;
  bool committed_ = false;
};
// In the names of what is being written and of what gives way to it, each followed by the process and a random number.
inline constexpr std::string_view kStagingMark = ".qalora-tmp-", kAsideMark = ".qalora-old-";

// Whole small text file, or what a pipe gives. UserError when missing, DataError when it is a folder, larger than
// `limit_bytes` or unreadable.
std::string read_text_file(const fs::path& path, uint64_t limit_bytes = uint64_t{64} << 20);
void write_text_file(const fs::path& path, std::string_view text);  // atomic
void copy_file_synced(const fs::path& from, const fs::path& to);

void sync_folder(const fs::path& folder);
// What lies at `path`, links followed; not_found where there is nothing. DataError where it cannot be looked at: a name
// that is too long, links in a circle, a folder that may not be entered.
fs::file_type kind_of(const fs::path& path);
std::vector<std::string> list_folder(const fs::path& folder);  // the names in it, sorted; DataError
// True when both name the same existing file or folder (links resolved).
bool same_file(const fs::path& a, const fs::path& b);

// SHA-256 of bytes, as 64 hexadecimal digits; `Sha256` for what comes in pieces.
class Sha256 {
 public:
  Sha256();
  void update(std::span<const std::byte> bytes);
  void update(std::string_view text);
  std::string hex();  // ends the computation

 private:
  void block(const unsigned char* data);
  uint32_t state_[8];
  unsigned char buffer_[64];
  uint64_t length_ = 0;
};
std::string sha256(std::span<const std::byte> bytes);

}  // namespace qalora
