// Zip archives whose entries are stored as they are, which is how PyTorch writes: each entry is a piece of the file
// itself. Zip64 is read.
#pragma once

#include <cstddef>
#include <map>
#include <span>
#include <string>
#include <string_view>

namespace qalora::io {

class ZipArchive {
 public:
  static bool looks_like(std::string_view start) { return start.starts_with("PK\x03\x04"); }

  // file: all bytes, which must outlive this; where: the file's name, for messages. Checks the whole directory:
  // DataError for entries that are compressed or encrypted, that overlap, that lie outside the file, or whose two
  // headers do not agree.
  ZipArchive(std::span<const std::byte> file, const std::string& where);

  const std::map<std::string, std::span<const std::byte>, std::less<>>& entries() const { return entries_; }

 private:
  std::map<std::string, std::span<const std::byte>, std::less<>> entries_;
};

}  // namespace qalora::io
