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
inline constexpr int kMaxDepth = 64;  // nesting of a JSON record; bits of one word

struct Chunk {
  uint64_t begin = 0, end = 0;
  int64_t line = 1;   // of its first byte
  std::string fault;  // not empty: why this is no record
};
using OnChunk = std::function<void(Chunk)>;

// `bytes` is the whole file, `begin` where the content starts (behind a byte order mark). A damaged element of an array is
// reported and the search goes on at the next line that begins with '{'.
void split_json_array(std::string_view bytes, uint64_t begin, const OnChunk& on_chunk);
void split_json_lines(std::string_view bytes, uint64_t begin, const OnChunk& on_chunk);
void split_csv(std::string_view bytes, uint64_t begin, const OnChunk& on_chunk);         // the header row is the first chunk
void split_paragraphs(std::string_view bytes, uint64_t begin, const OnChunk& on_chunk);  // parted by blank lines

// Reads the CSV row at `at` and moves behind it, counting line breaks into `line`. False when a quote is never closed.
// cells may be null where only the end is wanted.
bool next_csv_row(std::string_view bytes, uint64_t& at, int64_t& line, std::vector<std::string>* cells);

}  // namespace qalora::text
