#include "qalora/core/file.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "qalora/core/error.h"
#include "qalora/core/signals.h"

namespace qalora {

namespace {

// Opens for reading, or says why not. The caller closes. Non-blocking, because opening a pipe that nobody writes to
// would wait for ever.
int open_for_reading(const fs::path& path) {
  int descriptor = -1;
  do {
    descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  } while (descriptor < 0 && errno == EINTR);
  if (descriptor >= 0) return descriptor;
  const int reason = errno;
  QALORA_REQUIRE(reason != ENOENT && reason != ENOTDIR, UserError, path.string(), ": no such file");
  throw DataError(message(path.string(), ": cannot be read: ", std::strerror(reason)));
}

struct Descriptor {
  int value;
  ~Descriptor() { ::close(value); }
};

struct stat status_of(int descriptor, const fs::path& path) {
  struct stat status = {};
  QALORA_REQUIRE(::fstat(descriptor, &status) == 0, DataError, path.string(),
                 ": cannot be read: ", std::strerror(errno));
  QALORA_REQUIRE(!S_ISDIR(status.st_mode), DataError, path.string(), ": is a folder, expected a file");
  return status;
}

// Until a pipe has more to read; a signal that asks to stop is heard meanwhile.
void wait_readable(int descriptor) {
  struct pollfd waiting = {.fd = descriptor, .events = POLLIN, .revents = 0};
  ::poll(&waiting, 1, /*timeout=*/-1);
  throw_if_stopped();
}

}  // namespace

MappedFile::MappedFile(const fs::path& path) : path_(path) {
  const Descriptor file{open_for_reading(path)};
  const struct stat status = status_of(file.value, path);
  QALORA_REQUIRE(S_ISREG(status.st_mode), DataError, path.string(), ": is a pipe or a device, expected a regular file");
  size_ = static_cast<size_t>(status.st_size);
  if (size_ == 0) return;
  void* map = ::mmap(nullptr, size_, PROT_READ, MAP_SHARED, file.value, 0);
  QALORA_REQUIRE(map != MAP_FAILED, DataError, path.string(), ": cannot be mapped (", size_,
                 " bytes): ", std::strerror(errno));
  data_ = static_cast<const std::byte*>(map);
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : path_(std::move(other.path_)),
      data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

void MappedFile::release(std::span<const std::byte> part) const {
  if (part.empty()) return;
  QALORA_CHECK(part.data() >= data_ && part.data() + part.size() <= data_ + size_, "the part lies outside ",
               path_.string());
  // Only pages that lie wholly inside: the neighbours may still be in use.
  const uintptr_t page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  const uintptr_t address = reinterpret_cast<uintptr_t>(part.data());
  const uintptr_t begin = (address + page - 1) / page * page;
  const uintptr_t end = (address + part.size()) / page * page;
  if (begin < end) ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

std::string read_text_file(const fs::path& path, uint64_t limit_bytes) {
  const Descriptor file{open_for_reading(path)};
  const struct stat status = status_of(file.value, path);
  const auto refuse = [&](uint64_t size) {
    QALORA_REQUIRE(size <= limit_bytes, DataError, path.string(), ": is larger than the ", limit_bytes,
                   " bytes expected at most");
  };
  if (S_ISREG(status.st_mode)) refuse(static_cast<uint64_t>(status.st_size));
  std::string text;
  char buffer[1 << 16];                   // read to the end and not to st_size: pipes and /proc say 0
  bool early = S_ISFIFO(status.st_mode);  // a pipe whose writer has not come yet reads as if it were at its end
  while (true) {
    const ssize_t count = ::read(file.value, buffer, sizeof buffer);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0 && errno == EAGAIN) {
      wait_readable(file.value);
      continue;
    }
    QALORA_REQUIRE(count >= 0, DataError, path.string(), ": cannot be read: ", std::strerror(errno));
    if (count == 0 && std::exchange(early, false)) {
      wait_readable(file.value);
      continue;
    }
    if (count == 0) return text;
    early = false;
    text.append(buffer, static_cast<size_t>(count));
    refuse(text.size());
  }
}

fs::file_type kind_of(const fs::path& path) {
  std::error_code failed;
  const fs::file_type type = fs::status(path, failed).type();
  QALORA_REQUIRE(!failed || type == fs::file_type::not_found, DataError, path.string(),
                 ": cannot be read: ", failed.message());
  return type;
}

std::vector<std::string> list_folder(const fs::path& folder) {
  std::vector<std::string> names;
  std::error_code failed;
  for (fs::directory_iterator entry(folder, failed), end; !failed && entry != end; entry.increment(failed)) {
    names.push_back(entry->path().filename().string());
  }
  QALORA_REQUIRE(!failed, DataError, folder.string(), ": cannot be listed: ", failed.message());
  std::sort(names.begin(), names.end());
  return names;
}

bool same_file(const fs::path& a, const fs::path& b) {
  std::error_code ignored;
  return fs::equivalent(a, b, ignored);
}

}  // namespace qalora
