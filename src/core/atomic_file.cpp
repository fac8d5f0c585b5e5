#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <system_error>
#include <utility>

#include "qalora/core/error.h"
#include "qalora/core/file.h"
#include "qalora/core/format.h"

namespace qalora {

namespace {

[[noreturn]] void fail(const fs::path& path, std::string_view action, int reason) {
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

}  // namespace

AtomicFile::AtomicFile(const fs::path& path)
    : path_(path), temporary_(parent_of(path) / message(".", path.filename().string(), ".tmp-", ::getpid())) {
  std::error_code ignored;
  QALORA_REQUIRE(path.has_filename() && !fs::is_directory(path, ignored), IoError, path.string(),
                 ": is a folder, expected a file name to write");
  descriptor_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0666);
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
  }
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
    : path_(folder_path(path)), replace_(replace) {
  const bool exists = is_taken(path_);
  QALORA_REQUIRE(replace || !exists, UserError, path_.string(),
                 ": exists already; choose another output, or --force to replace it");
  QALORA_REQUIRE(!exists || !contains_current_folder(path_), UserError, path_.string(),
                 ": is the current folder or one above it and will not be replaced; choose another output");
  const fs::path parent = parent_of(path_);
  std::error_code failed;
  fs::create_directories(parent, failed);
  if (failed) fail(parent, "be created", failed.value());

  struct statvfs disk = {};
  if (required_bytes > 0 && ::statvfs(parent.c_str(), &disk) == 0) {
    const uint64_t free_bytes = static_cast<uint64_t>(disk.f_bavail) * disk.f_frsize;
    QALORA_REQUIRE(free_bytes >= required_bytes, IoError, path_.string(), ": needs ", format_bytes(required_bytes),
                   ", but the disk has only ", format_bytes(free_bytes), " free; choose another output or make room");
  }
  staging_ = path_;
  staging_ += message(".tmp-", ::getpid());
  fs::remove_all(staging_, failed);  // of a crashed process that had our number
  if (::mkdir(staging_.c_str(), 0777) != 0) fail(path_, "be written", errno);
}

AtomicFolder::~AtomicFolder() {
  std::error_code ignored;
  if (!committed_) fs::remove_all(staging_, ignored);
}

void AtomicFolder::commit() {
  QALORA_CHECK(!committed_, path_.string(), " was committed twice");
  std::error_code failed;
  for (fs::recursive_directory_iterator entry(staging_, failed), end; !failed && entry != end; entry.increment(failed)) {
    const fs::file_type type = entry->symlink_status(failed).type();
    if (type == fs::file_type::directory) sync_folder(entry->path());
    if (type == fs::file_type::regular) sync_path(entry->path(), 0);
  }
  if (failed) fail(path_, "be synced", failed.value());
  sync_folder(staging_);

  const bool exists = is_taken(path_);
  QALORA_REQUIRE(replace_ || !exists, UserError, path_.string(),
                 ": somebody created it meanwhile; choose another output, or --force");
  fs::path aside = path_;
  aside += message(".old-", ::getpid());
  if (exists && ::rename(path_.c_str(), aside.c_str()) != 0) fail(path_, "be moved aside", errno);
  if (::rename(staging_.c_str(), path_.c_str()) != 0) {
    const int reason = errno;
    if (exists) fs::rename(aside, path_, failed);
    fail(path_, "be put in place", reason);
  }
  committed_ = true;
  sync_folder(parent_of(path_));
  if (exists) fs::remove_all(aside, failed);
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
