#include "qalora/text/dataset.h"

#include <algorithm>
#include <cctype>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>

#include "blanks.h"
#include "containers.h"
#include "formats.h"
#include "qalora/core/error.h"
#include "qalora/core/format.h"
#include "qalora/core/log.h"
#include "qalora/core/signals.h"

namespace qalora::text {
namespace {

using nlohmann::json;

constexpr uint64_t kReleaseBytes = uint64_t{32} << 20;  // pages walked over are handed back in pieces of this size

enum class Container { kJsonArray, kJsonLines, kCsv, kParagraphs };

std::string_view view(const MappedFile& file) {
  const auto bytes = file.bytes();
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

// Where the content begins: behind a UTF-8 byte order mark. DataError for what is plainly no text file of ours.
uint64_t content_begin(const fs::path& path, std::string_view bytes) {
  QALORA_REQUIRE(!bytes.empty(), DataError, path.string(),
                 ": the file is empty; expected JSON, JSON Lines, CSV or text");
  struct Magic {
    std::string_view bytes;
    const char* what;
  };
  const Magic foreign[] = {
      {std::string_view("\x1f\x8b", 2), "compressed with gzip; unpack it first (gunzip)"},
      {std::string_view("PK\x03\x04", 4), "a ZIP archive; unpack it first (unzip)"},
      {std::string_view("\x28\xb5\x2f\xfd", 4), "compressed with zstd; unpack it first (unzstd)"},
      {std::string_view("\xfd"
                        "7zXZ",
                        5),
       "compressed with xz; unpack it first (unxz)"},
      {std::string_view("BZh", 3), "compressed with bzip2; unpack it first (bunzip2)"},
      {std::string_view("PAR1", 4), "a Parquet file; write it as JSON Lines first"},
      {std::string_view("ARROW1", 6), "an Arrow file; write it as JSON Lines first"},
      {std::string_view("\xff\xfe", 2), "in UTF-16; write it as UTF-8 first"},
      {std::string_view("\xfe\xff", 2), "in UTF-16; write it as UTF-8 first"},
      {"version https://git-lfs", "a Git LFS pointer, not the file itself; fetch it with 'git lfs pull'"}};
  for (const Magic& magic : foreign) {
    QALORA_REQUIRE(!bytes.starts_with(magic.bytes), DataError, path.string(), ": the file is ", magic.what);
  }
  return bytes.starts_with("\xef\xbb\xbf") ? 3 : 0;
}

std::string lower_extension(const fs::path& path) {
  std::string extension = path.extension().string();
  std::transform(extension.begin(), extension.end(), extension.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return extension;
}

// By the name where it says text or CSV, else by the first character; a forced format has its word where the two
// disagree.
Container container_of(const fs::path& path, std::string_view bytes, uint64_t begin, DataFormat format) {
  const std::string extension = lower_extension(path);
  const bool text_name = extension == ".txt" || extension == ".md" || extension == ".text";
  if (extension == ".csv") return Container::kCsv;
  const size_t first = bytes.find_first_not_of(kBlanks, begin);
  if (first == std::string_view::npos && text_name) return Container::kParagraphs;
  QALORA_REQUIRE(first != std::string_view::npos, DataError, path.string(), ": the file holds nothing but white space");
  const bool json_like = bytes[first] == '[' || bytes[first] == '{';
  if (format == DataFormat::kText && (text_name || !json_like)) return Container::kParagraphs;
  if (format == DataFormat::kAuto && extension == ".txt") {
    if (bytes[first] == '{') {
      log::warn(
          message(path.string(),
                  ": begins with '{' but is read as plain text because of its name; give data_format, or rename JSON ",
                  "Lines to .jsonl"));
    }
    return Container::kParagraphs;
  }
  if (json_like) return bytes[first] == '[' ? Container::kJsonArray : Container::kJsonLines;
  const auto byte = static_cast<unsigned char>(bytes[first]);
  const std::string seen =
      byte >= 0x20 && byte < 0x7f ? message("'", bytes[first], "'") : message("byte ", static_cast<int>(byte));
  throw DataError(message(
      path.string(), ": begins with ", seen,
      "; expected '[' (JSON), '{' (JSON Lines), or a name that ends in .csv or .txt; data_format text takes any text"));
}

// SHA-256 of all bytes, handing pages back on the way.
std::string hash_of(const MappedFile& file) {
  const auto bytes = file.bytes();
  Sha256 digest;
  for (uint64_t at = 0; at < bytes.size(); at += kReleaseBytes) {
    const auto part = bytes.subspan(at, std::min<uint64_t>(kReleaseBytes, bytes.size() - at));
    digest.update(part);
    file.release(part);
  }
  return digest.hex();
}

void require_plain_text(std::string_view text) {
  QALORA_REQUIRE(text.find('\0') == std::string_view::npos, DataError, "a NUL byte stands in the text");
  QALORA_REQUIRE(valid_utf8(text), DataError, "the text is not valid UTF-8");
}

}  // namespace

struct Dataset::Impl {
  struct Entry {
    uint64_t begin = 0;
    uint32_t size = 0;  // a record is at most 64 MiB
    uint32_t line = 0;
  };

  MappedFile file;
  DataFormat format;
  bool detected;
  Container container = Container::kJsonLines;
  std::vector<std::string> columns;  // CSV
  std::vector<Entry> entries;        // several with one begin: the instances of one self-instruct record
  std::vector<BadRecord> bad;
  bool ends_early = false;
  uintmax_t size_on_disk = 0;
  mutable std::mutex mutex;  // of what follows
  mutable fs::file_time_type written;
  mutable std::string digest;

  Impl(const fs::path& path, DataFormat wanted) : file(path), format(wanted), detected(wanted == DataFormat::kAuto) {
    std::error_code gone;  // a file that vanishes here is noticed when a record is read
    size_on_disk = fs::file_size(path, gone);
    written = fs::last_write_time(path, gone);
  }

  void scan(bool skip_bad_records);
  void read_columns(const Chunk& chunk);
  json parse(std::string_view bytes) const;
  int64_t take(const Chunk& chunk);
  void require_unchanged(const std::string& place) const;
  std::string place(int64_t line) const { return message(file.path().string(), ":", line); }
};

json Dataset::Impl::parse(std::string_view bytes) const {
  if (container == Container::kJsonArray || container == Container::kJsonLines) return parse_record(bytes);
  require_plain_text(bytes);
  if (container == Container::kParagraphs) return json{{"text", std::string(bytes)}};
  uint64_t at = 0;
  int64_t line = 1;
  std::vector<std::string> cells;
  next_csv_row(bytes, at, line, &cells);
  QALORA_REQUIRE(cells.size() == columns.size(), DataError, "the row has ", cells.size(), " cells, the header row has ",
                 columns.size());
  json record = json::object();
  for (size_t column = 0; column < columns.size(); ++column) record[columns[column]] = std::move(cells[column]);
  return record;
}

void Dataset::Impl::read_columns(const Chunk& chunk) {
  const std::string_view row = view(file).substr(chunk.begin, chunk.end - chunk.begin);
  uint64_t at = 0;
  int64_t line = 1;
  QALORA_REQUIRE(chunk.fault.empty(), DataError, place(chunk.line), ": ", chunk.fault);
  QALORA_REQUIRE(valid_utf8(row), DataError, place(chunk.line), ": the header row is not valid UTF-8");
  next_csv_row(row, at, line, &columns);
  for (size_t column = 0; column < columns.size(); ++column) {
    const bool twice =
        std::find(columns.begin(), columns.begin() + column, columns[column]) != columns.begin() + column;
    QALORA_REQUIRE(!twice, DataError, place(chunk.line), ": the header row names the column '", columns[column],
                   "' twice");
  }
}

// Checks one chunk and returns how many records it holds; DataError with the reason alone.
int64_t Dataset::Impl::take(const Chunk& chunk) {
  QALORA_REQUIRE(chunk.fault.empty(), DataError, chunk.fault);
  const json record = parse(view(file).substr(chunk.begin, chunk.end - chunk.begin));
  if (format == DataFormat::kAuto) {
    const DataFormat found = detect_format(record);
    QALORA_REQUIRE(
        found != DataFormat::kAuto, DataError, "no known format has the keys ", key_names(record),
        "; expected for example 'instruction' and 'output' (alpaca), 'inputs' and 'targets' (flan), 'messages' or 'text'");
    const size_t records = read_records(record, found).size();
    format = found;  // only a record that is whole decides for the rest
    return static_cast<int64_t>(records);
  }
  return std::ssize(read_records(record, format));
}

void Dataset::Impl::scan(bool skip_bad_records) {
  const fs::path& path = file.path();
  const std::string_view bytes = view(file);
  const uint64_t begin = content_begin(path, bytes);
  container = container_of(path, bytes, begin, format);
  uint64_t released = 0;
  bool header = container == Container::kCsv;
  const auto on_chunk = [&](Chunk chunk) {
    if (std::exchange(header, false)) return read_columns(chunk);
    try {
      const int64_t count = take(chunk);
      const Entry entry{chunk.begin, static_cast<uint32_t>(chunk.end - chunk.begin), static_cast<uint32_t>(chunk.line)};
      entries.insert(entries.end(), count, entry);
    } catch (const DataError& error) {
      QALORA_REQUIRE(!chunk.fatal, DataError, place(chunk.line), ": ", error.what(), "; correct it");
      QALORA_REQUIRE(skip_bad_records, DataError, place(chunk.line), ": ", error.what(),
                     "; correct it, or leave such records out with --skip-bad-records");
      bad.push_back({chunk.line, error.what()});
      // The missing end of an array is a fault behind the last byte; a line that was cut has no line break.
      ends_early = container == Container::kJsonArray ? chunk.begin == bytes.size()
                                                      : chunk.end == bytes.size() && bytes.back() != '\n';
    }
    if (chunk.end - released < kReleaseBytes) return;
    throw_if_stopped();
    file.release(file.bytes().subspan(released, chunk.end - released));
    released = chunk.end;
  };
  switch (container) {
    case Container::kJsonArray: split_json_array(bytes, begin, on_chunk); break;
    case Container::kJsonLines: split_json_lines(bytes, begin, on_chunk); break;
    case Container::kCsv: split_csv(bytes, begin, CsvQuotes::kStrict, on_chunk); break;
    case Container::kParagraphs: split_paragraphs(bytes, begin, on_chunk); break;
  }
  entries.shrink_to_fit();
  QALORA_REQUIRE(!entries.empty(), DataError, path.string(), ": holds no usable record",
                 bad.empty()
                     ? ""
                     : message("; all ", bad.size(), " are bad, the first in line ", bad[0].line, ": ", bad[0].reason));
}

// A file that was only touched is taken as it is, where its hash is known from before.
void Dataset::Impl::require_unchanged(const std::string& place) const {
  const std::lock_guard lock(mutex);
  std::error_code gone;
  const auto size = fs::file_size(file.path(), gone);
  const auto time = gone ? fs::file_time_type() : fs::last_write_time(file.path(), gone);
  bool same = !gone && size == size_on_disk;
  if (same && time != written) {
    same = !digest.empty() && hash_of(MappedFile(file.path())) == digest;
    if (same) written = time;
  }
  QALORA_REQUIRE(
      same, DataError, place,
      ": the file was changed or removed after it was checked; leave it alone while it is in use and start again");
}

Dataset::Dataset(const fs::path& path, DataFormat format, bool skip_bad_records)
    : impl_(std::make_unique<Impl>(path, format)) {
  impl_->scan(skip_bad_records);
}
Dataset::~Dataset() = default;
Dataset::Dataset(Dataset&&) noexcept = default;

int64_t Dataset::size() const { return std::ssize(impl_->entries); }

Record Dataset::record(int64_t index) const {
  QALORA_CHECK(index >= 0 && index < size(), "record ", index, " of ", size());
  const auto& entries = impl_->entries;
  const Impl::Entry& entry = entries[index];
  const std::string place = impl_->place(entry.line);
  impl_->require_unchanged(place);
  size_t instance = 0;
  for (int64_t before = index; before > 0 && entries[before - 1].begin == entry.begin; --before) ++instance;
  try {
    auto records = read_records(impl_->parse(view(impl_->file).substr(entry.begin, entry.size)), impl_->format);
    QALORA_REQUIRE(instance < records.size(), DataError, "the record is not what it was when the file was checked");
    return std::move(records[instance]);
  } catch (const DataError& error) {
    throw DataError(message(place, ": ", error.what()));
  }
}

int64_t Dataset::line(int64_t index) const {
  QALORA_CHECK(index >= 0 && index < size(), "record ", index, " of ", size());
  return impl_->entries[index].line;
}

const fs::path& Dataset::path() const { return impl_->file.path(); }
DataFormat Dataset::format() const { return impl_->format; }
bool Dataset::detected() const { return impl_->detected; }
const std::vector<BadRecord>& Dataset::bad() const { return impl_->bad; }

bool Dataset::ends_early() const { return impl_->ends_early; }

std::string Dataset::fingerprint() const {
  const std::lock_guard lock(impl_->mutex);
  if (impl_->digest.empty()) impl_->digest = hash_of(impl_->file);
  return impl_->digest;
}

void warn_of_bad(const Dataset& dataset, const std::vector<BadRecord>& bad) {
  if (bad.empty()) return;
  const auto first =
      std::min_element(bad.begin(), bad.end(), [](const BadRecord& a, const BadRecord& b) { return a.line < b.line; });
  const std::string path = dataset.path().string();
  log::warn(message(path, ": ", bad.size(), bad.size() == 1 ? " bad record is" : " bad records are",
                    " left out, the first in line ", first->line, ": ", first->reason));
  if (!dataset.ends_early()) return;
  log::warn(message(path, ": the file ends too early and is probably a part of one, only the ", dataset.size(),
                    " records before its end are used; fetch it again if it was downloaded"));
}

void read_csv(const fs::path& path, const std::function<void(std::vector<std::string>& cells, int64_t line)>& row) {
  const MappedFile file(path);
  const std::string_view bytes = view(file);
  if (bytes.empty()) return;
  const uint64_t begin = content_begin(path, bytes);
  std::vector<std::string> cells;
  split_csv(bytes, begin, CsvQuotes::kLoose, [&](const Chunk& chunk) {
    QALORA_REQUIRE(chunk.fault.empty(), DataError, path.string(), ":", chunk.line, ": ", chunk.fault);
    const std::string_view text = bytes.substr(chunk.begin, chunk.end - chunk.begin);
    QALORA_REQUIRE(valid_utf8(text), DataError, path.string(), ":", chunk.line, ": the row is not valid UTF-8");
    uint64_t at = 0;
    int64_t line = chunk.line;
    next_csv_row(text, at, line, &cells);
    row(cells, chunk.line);
  });
}

}  // namespace qalora::text
