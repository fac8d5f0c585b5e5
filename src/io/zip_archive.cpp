#include "qalora/io/zip_archive.h"

#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

#include "byte_reader.h"
#include "qalora/core/checked.h"

namespace qalora::io {
namespace {

// Signatures and sizes as PKWARE's APPNOTE.TXT has them (4.3.7, 4.3.12, 4.3.14 to 4.3.16).
constexpr uint32_t kLocalHeader = 0x04034b50, kCentralHeader = 0x02014b50, kEnd = 0x06054b50, kEnd64 = 0x06064b50,
                   kLocator64 = 0x07064b50;
constexpr uint64_t kEndBytes = 22, kEnd64Bytes = 56, kLocatorBytes = 20, kLongestComment = 0xffff;
constexpr uint16_t kStored = 0, kExtra64 = 1;
constexpr uint16_t kEncrypted = 1,
                   kSizesFollow = 8;    // flags; the second: the sizes stand behind the data and may be 0 before it
constexpr uint32_t kIn64 = 0xffffffff;  // "see the zip64 field"

using Bytes = std::span<const std::byte>;

struct Directory {
  uint64_t begin = 0, bytes = 0, entries = 0;
};

struct Entry {
  std::string name;
  uint16_t flags = 0, method = 0;
  uint32_t crc = 0;
  uint64_t stored = 0, bytes = 0, header = 0;  // stored: as it lies in the file; header: where the local header begins
};

template <typename T>
T number_at(Bytes file, uint64_t position) {
  T value;
  std::memcpy(&value, file.data() + position, sizeof value);
  return value;
}

// Where the end-of-directory record begins: the last one whose comment reaches exactly to the end of the file.
std::optional<uint64_t> find_end(Bytes file) {
  if (file.size() < kEndBytes) return std::nullopt;
  const uint64_t last = file.size() - kEndBytes, first = last > kLongestComment ? last - kLongestComment : 0;
  for (uint64_t position = last + 1; position-- > first;) {
    if (number_at<uint32_t>(file, position) != kEnd) continue;
    if (number_at<uint16_t>(file, position + 20) == last - position) return position;
  }
  return std::nullopt;
}

// The zip64 record, where the locator before the end says that there is one.
std::optional<Directory> directory64(Bytes file, uint64_t end, const std::string& where) {
  if (end < kLocatorBytes || number_at<uint32_t>(file, end - kLocatorBytes) != kLocator64) return std::nullopt;
  const uint64_t at = number_at<uint64_t>(file, end - kLocatorBytes + 8), limit = end - kLocatorBytes;
  const bool there = at <= limit && limit - at >= kEnd64Bytes && number_at<uint32_t>(file, at) == kEnd64;
  QALORA_REQUIRE(there, DataError, where, ": the zip64 directory should end at byte ", at,
                 " and does not; the archive is damaged");
  const bool one_file = number_at<uint32_t>(file, at + 16) == 0 && number_at<uint32_t>(file, at + 20) == 0;
  QALORA_REQUIRE(one_file, DataError, where, ": the archive is one part of several; join them first");
  Directory directory;
  directory.entries = number_at<uint64_t>(file, at + 32);
  directory.bytes = number_at<uint64_t>(file, at + 40);
  directory.begin = number_at<uint64_t>(file, at + 48);
  const auto stop = checked_add(directory.begin, directory.bytes);
  QALORA_REQUIRE(stop && *stop <= at, DataError, where, ": the directory claims bytes ", directory.begin, " to ",
                 directory.begin, " + ", directory.bytes, ", the archive has ", at, " bytes before its end record");
  return directory;
}

Directory find_directory(Bytes file, const std::string& where) {
  const auto end = find_end(file);
  QALORA_REQUIRE(end.has_value(), DataError, where,
                 ": begins like a zip archive, but the directory at its end is missing; incomplete "
                 "download? fetch it again");
  if (const auto found = directory64(file, *end, where)) return *found;
  QALORA_REQUIRE(number_at<uint16_t>(file, *end + 4) == 0 && number_at<uint16_t>(file, *end + 6) == 0, DataError, where,
                 ": the archive is one part of several; join them first");
  Directory directory;
  directory.entries = number_at<uint16_t>(file, *end + 10);
  directory.bytes = number_at<uint32_t>(file, *end + 12);
  directory.begin = number_at<uint32_t>(file, *end + 16);
  QALORA_REQUIRE(directory.begin + directory.bytes <= *end, DataError, where, ": the directory claims bytes ",
                 directory.begin, " to ", directory.begin + directory.bytes, ", the archive has ", *end,
                 " bytes before its end record");
  return directory;
}

// Replaces the numbers of a header that say "see the zip64 field" by those in it, in the order that the format fixes.
void widen(ByteReader extra, std::initializer_list<uint64_t*> numbers) {
  while (extra.left() >= 4) {
    const auto kind = extra.number<uint16_t>();
    const auto bytes = extra.number<uint16_t>();
    ByteReader field(extra.take(bytes), extra.where());
    if (kind != kExtra64) continue;
    for (uint64_t* number : numbers) {
      if (*number == kIn64) *number = field.number<uint64_t>();
    }
    return;
  }
}

Entry read_central(ByteReader& reader, const std::string& where) {
  QALORA_REQUIRE(reader.number<uint32_t>() == kCentralHeader, DataError, where, ": entry at byte ",
                 reader.position() - 4, " of the directory is none; the archive is damaged");
  Entry entry;
  reader.take(4);  // versions
  entry.flags = reader.number<uint16_t>();
  entry.method = reader.number<uint16_t>();
  reader.take(4);  // time and date
  entry.crc = reader.number<uint32_t>();
  entry.stored = reader.number<uint32_t>();
  entry.bytes = reader.number<uint32_t>();
  const auto name_bytes = reader.number<uint16_t>(), extra_bytes = reader.number<uint16_t>(),
             comment_bytes = reader.number<uint16_t>();
  QALORA_REQUIRE(reader.number<uint16_t>() == 0, DataError, where,
                 ": the archive is one part of several; join them first");
  reader.take(6);  // attributes
  entry.header = reader.number<uint32_t>();
  entry.name = reader.text(name_bytes);
  widen(ByteReader(reader.take(extra_bytes), reader.where()), {&entry.bytes, &entry.stored, &entry.header});
  reader.take(comment_bytes);
  return entry;
}

void require_plain(const Entry& entry, const std::string& where) {
  QALORA_REQUIRE((entry.flags & kEncrypted) == 0, DataError, where,
                 ": the entry is encrypted; unpack the archive first");
  QALORA_REQUIRE(entry.method == kStored, DataError, where, ": the entry is compressed (method ", entry.method,
                 "), which torch.save never does; unpack the archive and pack it again without compression (zip -0)");
  QALORA_REQUIRE(entry.stored == entry.bytes, DataError, where, ": the entry takes ", entry.stored,
                 " bytes in the archive and has ", entry.bytes, ", though it is not compressed");
}

// The data of an entry, after its local header was found to say the same as the directory. [header, data's end)
Bytes read_local(Bytes file, const Entry& entry, uint64_t limit, const std::string& where) {
  QALORA_REQUIRE(entry.header < limit, DataError, where, ": the entry begins at byte ", entry.header,
                 ", the archive's data ends at ", limit);
  ByteReader reader(file.subspan(entry.header, limit - entry.header), where);
  QALORA_REQUIRE(reader.number<uint32_t>() == kLocalHeader, DataError, where, ": there is no entry at byte ",
                 entry.header);
  reader.take(2);
  const auto flags = reader.number<uint16_t>(), method = reader.number<uint16_t>();
  reader.take(4);
  const auto crc = reader.number<uint32_t>();
  uint64_t stored = reader.number<uint32_t>(), bytes = reader.number<uint32_t>();
  const auto name_bytes = reader.number<uint16_t>(), extra_bytes = reader.number<uint16_t>();
  const std::string_view name = reader.text(name_bytes);
  widen(ByteReader(reader.take(extra_bytes), where), {&bytes, &stored});
  const bool later = (flags & kSizesFollow) != 0;
  const auto agrees = [&](uint64_t here, uint64_t central) {
    return here == central || (later && (here == 0 || here == kIn64));
  };
  const bool same = name == entry.name && method == entry.method && flags == entry.flags &&
                    agrees(stored, entry.stored) && agrees(bytes, entry.bytes) && agrees(crc, entry.crc);
  QALORA_REQUIRE(same, DataError, where,
                 ": the entry's own header and the archive's directory do not agree; the archive is damaged");
  const Bytes data = reader.take(entry.bytes);
  return file.subspan(entry.header, static_cast<uint64_t>(data.data() + data.size() - (file.data() + entry.header)));
}

}  // namespace

ZipArchive::ZipArchive(std::span<const std::byte> file, const std::string& where) {
  const Directory directory = find_directory(file, where);
  ByteReader reader(file.subspan(directory.begin, directory.bytes), where + ": the archive's directory");
  std::vector<std::pair<Bytes, std::string>> taken;  // header and data of each entry
  for (uint64_t index = 0; index < directory.entries; ++index) {
    Entry entry = read_central(reader, where);
    const std::string place = message(where, ": '", entry.name, "'");
    require_plain(entry, place);
    const Bytes whole = read_local(file, entry, directory.begin, place);
    const bool fresh = entries_.emplace(entry.name, whole.last(entry.bytes)).second;
    QALORA_REQUIRE(fresh, DataError, place, ": stands twice in the archive");
    taken.emplace_back(whole, std::move(entry.name));
  }
  QALORA_REQUIRE(reader.left() == 0, DataError, where, ": ", reader.left(),
                 " bytes of the archive's directory belong to no entry");
  std::sort(taken.begin(), taken.end(), [](const auto& a, const auto& b) { return a.first.data() < b.first.data(); });
  for (size_t i = 1; i < taken.size(); ++i) {
    const Bytes before = taken[i - 1].first;
    QALORA_REQUIRE(before.data() + before.size() <= taken[i].first.data(), DataError, where, ": '", taken[i - 1].second,
                   "' and '", taken[i].second, "' overlap; the archive is damaged, or made to do harm");
  }
}

}  // namespace qalora::io
