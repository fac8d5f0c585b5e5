// Where the records lie in a file: byte ranges, found without building anything in memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace qalora::text {

inline constexpr uint64_t kMaxRecordBytes = uint64_t{64} << 20;
inline constexpr uint64_t kMaxTextBytes = uint64_t{1} << 20;  // what is encoded at once of a text without blank lines
inline constexpr int kMaxDepth = 64;                          // nesting of a JSON record; bits of one word

struct Chunk {
  uint64_t begin = 0, end = 0;
  int64_t line = 1;    // of its first byte
  std::string fault;   // not empty: why this is no record
  bool fatal = false;  // the records behind the fault cannot be found: it must not be passed over
};
using OnChunk = std::function<void(Chunk)>;

// `bytes` is the whole file, `begin` where the content starts (behind a byte order mark). A damaged element of an array
// is reported and the search goes on at the next record, told by the line's indentation or by the records' first key.
void split_json_array(std::string_view bytes, uint64_t begin, const OnChunk& on_chunk);
void split_json_lines(std::string_view bytes, uint64_t begin, const OnChunk& on_chunk);
// The header row is the first chunk. Behind a quote that is never closed the search goes on at the line below the
// quote's. kStrict: text behind a closing quote is a fault, for it is how a lost quote shows.
enum class CsvQuotes { kStrict, kLoose };
void split_csv(std::string_view bytes, uint64_t begin, CsvQuotes quotes, const OnChunk& on_chunk);
// Parted by blank lines, and at the end of a line where one would be longer than kMaxTextBytes.
void split_paragraphs(std::string_view bytes, uint64_t begin, const OnChunk& on_chunk);

// Reads the CSV row at `at` and moves behind it, counting line breaks into `line`. cells may be null where only the end
// is wanted.
struct CsvRow {
  bool open = false;         // a quote is never closed
  bool loose = false;        // text stands behind a closing quote
  uint64_t fault_quote = 0;  // where the first quote stands that is open or loose
};
CsvRow next_csv_row(std::string_view bytes, uint64_t& at, int64_t& line, std::vector<std::string>* cells);

}  // namespace qalora::text
