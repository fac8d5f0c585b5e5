#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <random>
#include <system_error>
#include <utility>

#include "qalora/core/error.h"
#include "qalora/core/file.h"
#include "qalora/core/format.h"
#include "qalora/core/log.h"

namespace qalora {

namespace {

// What stands in the way of `path` where a folder should be: the nearest thing above it that is there. "": nothing.
fs::path file_above(const fs::path& path) {
  for (fs::path above = path.parent_path(); !above.empty(); above = above.parent_path()) {
    std::error_code failed;
    const fs::file_type type = fs::status(above, failed).type();
    if (type != fs::file_type::not_found) return type == fs::file_type::directory ? fs::path() : above;
    if (above == above.parent_path()) break;
  }
  return {};
}

[[noreturn]] void fail(const fs::path& path, std::string_view action, int reason) {
  const fs::path file = reason == ENOTDIR ? file_above(path / ".") : fs::path();
  QALORA_REQUIRE(file.empty(), IoError, path.string(), ": cannot ", action, ": ", file == path ? "it" : file.string(),
                 " is a file, expected a folder");
  throw IoError(message(path.string(), ": cannot ", action, ": ", std::strerror(reason)));
}

fs::path parent_of(const fs::path& path) { return path.has_parent_path() ? path.parent_path() : fs::path("."); }

// Flushes a file or a folder to the disk.
void sync_path(const fs::path& path, int flags) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | flags);
  if (descriptor < 0) fail(path, "be opened to sync it", errno);
  const int reason = ::fsync(descriptor) == 0 ? 0 : errno;
  ::close(descriptor);
  // Some file systems do not sync folders and say so; there is nothing better to do on them.
  if (reason != 0 && reason != EINVAL && reason != ENOTSUP) fail(path, "be synced", reason);
}

// Something has this name, be it a link that leads nowhere. What cannot be looked at is left to the call that needs it.
bool is_taken(const fs::path& path) {
  std::error_code ignored;
  return fs::exists(fs::symlink_status(path, ignored));
}

// "out/" and "out" are one folder; "." and ".." get their real names.
fs::path folder_path(const fs::path& path) {
  fs::path result = path.has_filename() ? path : path.parent_path();
  if (result.empty() || result.filename() == "." || result.filename() == "..") {
    std::error_code failed;
    result = fs::absolute(path, failed).lexically_normal();
    if (failed) fail(path, "be found from the current folder", failed.value());
  }
  return result.has_filename() ? result : result.parent_path();
}

// True when `folder` is the current folder or one above it: replacing it would delete what the person stands in.
bool contains_current_folder(const fs::path& folder) {
  std::error_code failed;
  for (fs::path here = fs::current_path(failed); !failed; here = here.parent_path()) {
    if (same_file(here, folder)) return true;
    if (here == here.parent_path()) break;
  }
  return false;
}

// No two processes, here or on another machine that writes to the same disk, take one name.
std::string unique_number() {
  std::random_device random;
  char text[48];
  std::snprintf(text, sizeof text, "%ld-%08x", static_cast<long>(::getpid()), static_cast<unsigned>(random()));
  return text;
}

// An exclusive lock on a folder, which ends with its process however that ends; -1 where somebody holds it or the file
// system has none.
int lock_folder(const fs::path& folder) {
  const int descriptor = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  if (descriptor < 0 || ::flock(descriptor, LOCK_EX | LOCK_NB) == 0) return descriptor;
  ::close(descriptor);
  return -1;
}

// Removes the staging folders whose process is gone: those that can be locked.
void remove_abandoned(const fs::path& parent, const std::string& prefix) {
  std::error_code failed;
  std::vector<fs::path> folders;
  for (fs::directory_iterator entry(parent, failed), end; !failed && entry != end; entry.increment(failed)) {
    if (entry->path().filename().string().starts_with(prefix)) folders.push_back(entry->path());
  }
  for (const fs::path& folder : folders) {
    const int lock = lock_folder(folder);
    if (lock < 0) continue;
    fs::remove_all(folder, failed);
    ::close(lock);
    log::info(folder.string() + ": left by a run that was killed, removed");
  }
}

void require_room(const fs::path& path, const fs::path& parent, uint64_t required_bytes) {
  struct statvfs disk = {};
  if (required_bytes == 0 || ::statvfs(parent.c_str(), &disk) != 0) return;
  const uint64_t free_bytes = static_cast<uint64_t>(disk.f_bavail) * disk.f_frsize;
  QALORA_REQUIRE(free_bytes >= required_bytes, IoError, path.string(), ": needs ", format_bytes(required_bytes),
                 ", but the disk has only ", format_bytes(free_bytes), " free; choose another output or make room");
}

// Puts `staging` at `path` -> where that which lay there is now.
fs::path change_places(const fs::path& staging, const fs::path& path) {
  if (::renameat2(AT_FDCWD, staging.c_str(), AT_FDCWD, path.c_str(), RENAME_EXCHANGE) == 0) return staging;
  const bool unknown = errno == EINVAL || errno == ENOSYS || errno == ENOTSUP;  // to this file system or kernel
  if (!unknown) fail(path, "be put in place", errno);
  fs::path aside = path;
  aside += message(kAsideMark, unique_number());
  if (::rename(path.c_str(), aside.c_str()) != 0) fail(path, "be moved aside", errno);
  if (::rename(staging.c_str(), path.c_str()) != 0) {
    const int reason = errno;
    std::error_code ignored;
    fs::rename(aside, path, ignored);
    fail(path, "be put in place", reason);
  }
  return aside;
}

}  // namespace

AtomicFile::AtomicFile(const fs::path& path)
    : path_(path),
      temporary_(parent_of(path) / message(".", path.filename().string(), kStagingMark, unique_number())) {
  std::error_code ignored;
  QALORA_REQUIRE(path.has_filename() && !fs::is_directory(path, ignored), IoError, path.string(),
                 ": is a folder, expected a file name to write");
  descriptor_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0666);
  if (descriptor_ < 0) fail(path_, "be written", errno);
}

AtomicFile::~AtomicFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
  if (!temporary_.empty()) ::unlink(temporary_.c_str());
}

void AtomicFile::write(std::span<const std::byte> bytes) {
  QALORA_CHECK(descriptor_ >= 0, path_.string(), " was written after its commit");
  while (!bytes.empty()) {
    const ssize_t count = ::write(descriptor_, bytes.data(), bytes.size());
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) fail(path_, "be written", errno);
    bytes = bytes.subspan(static_cast<size_t>(count));
    written_ += count;
  }
  start_writeback();
}

// Has the kernel put full pages on the disk, so that commit's sync does not find them all waiting. A hint: failure has
// no meaning.
void AtomicFile::start_writeback() {
  constexpr int64_t kPiece = int64_t{32} << 20, kPage = 4096;
  const int64_t end = written_ / kPage * kPage;
  if (end - started_ < kPiece) return;
  ::sync_file_range(descriptor_, started_, end - started_, SYNC_FILE_RANGE_WRITE);
  started_ = end;
}

void AtomicFile::write(std::string_view text) { write(std::as_bytes(std::span(text))); }

void AtomicFile::commit() {
  QALORA_CHECK(descriptor_ >= 0, path_.string(), " was committed twice");
  const int descriptor = std::exchange(descriptor_, -1);
  const int sync_reason = ::fsync(descriptor) == 0 ? 0 : errno;
  const int close_reason = ::close(descriptor) == 0 ? 0 : errno;
  if (sync_reason != 0 && sync_reason != EINVAL) fail(path_, "be synced", sync_reason);
  if (close_reason != 0) fail(path_, "be closed", close_reason);
  if (::rename(temporary_.c_str(), path_.c_str()) != 0) fail(path_, "be put in place", errno);
  temporary_.clear();
  sync_folder(parent_of(path_));
}

AtomicFolder::AtomicFolder(const fs::path& path, bool replace, uint64_t required_bytes)
    : path_(folder_path(path)),
      replace_(replace) {
  const bool exists = is_taken(path_);
  QALORA_REQUIRE(replace || !exists, UserError, path_.string(),
                 ": exists already; choose another output, or --force to replace it");
  QALORA_REQUIRE(!exists || !contains_current_folder(path_), UserError, path_.string(),
                 ": is the current folder or one above it and will not be replaced; choose another output");
  try {
    prepare(required_bytes);
  } catch (...) {
    discard();
    throw;
  }
}

void AtomicFolder::prepare(uint64_t required_bytes) {
  const fs::path parent = parent_of(path_);
  std::error_code failed;
  for (fs::path folder = parent; !folder.empty() && !fs::exists(folder, failed); folder = folder.parent_path()) {
    made_.push_back(folder);
    if (folder == folder.parent_path()) break;
  }
  fs::create_directories(parent, failed);
  if (failed) fail(parent, "be created", failed.value());
  remove_abandoned(parent, path_.filename().string() + std::string(kStagingMark));

  staging_ = path_;
  staging_ += message(kStagingMark, unique_number());
  // Before the question for room: where nothing can be written, that is the reason to give, not a disk of 0 bytes.
  if (::mkdir(staging_.c_str(), 0777) != 0) {
    const int reason = errno;
    staging_.clear();
    fail(path_, "be written", reason);
  }
  lock_ = lock_folder(staging_);
  require_room(path_, parent, required_bytes);
}

void AtomicFolder::discard() {
  std::error_code ignored;
  if (!staging_.empty()) fs::remove_all(staging_, ignored);
  staging_.clear();
  if (lock_ >= 0) ::close(lock_);
  lock_ = -1;
  if (committed_) return;
  for (const fs::path& folder : made_) ::rmdir(folder.c_str());  // stays when somebody put something into it
}

AtomicFolder::~AtomicFolder() { discard(); }

void AtomicFolder::commit() {
  QALORA_CHECK(!committed_, path_.string(), " was committed twice");
  std::error_code failed;
  for (fs::recursive_directory_iterator entry(staging_, failed), end; !failed && entry != end;
       entry.increment(failed)) {
    const fs::file_type type = entry->symlink_status(failed).type();
    if (type == fs::file_type::directory) sync_folder(entry->path());
    if (type == fs::file_type::regular) sync_path(entry->path(), 0);
  }
  if (failed) fail(path_, "be synced", failed.value());
  sync_folder(staging_);

  const bool exists = is_taken(path_);
  QALORA_REQUIRE(replace_ || !exists, UserError, path_.string(),
                 ": somebody created it meanwhile; choose another output, or --force");
  if (!exists) {  // from here on staging_ is what gave way to the new folder, or nothing
    if (::rename(staging_.c_str(), path_.c_str()) != 0) fail(path_, "be put in place", errno);
    staging_.clear();
  } else {
    staging_ = change_places(staging_, path_);
  }
  committed_ = true;
  sync_folder(parent_of(path_));
  discard();
}

void write_text_file(const fs::path& path, std::string_view text) {
  AtomicFile file(path);
  file.write(text);
  file.commit();
}

void copy_file_synced(const fs::path& from, const fs::path& to) {
  const MappedFile source(from);
  AtomicFile target(to);
  constexpr size_t kPiece = size_t{64} << 20;
  for (auto rest = source.bytes(); !rest.empty();) {
    const auto piece = rest.first(std::min(kPiece, rest.size()));
    target.write(piece);
    source.release(piece);
    rest = rest.subspan(piece.size());
  }
  target.commit();
}

void sync_folder(const fs::path& folder) { sync_path(folder, O_DIRECTORY); }

}  // namespace qalora
