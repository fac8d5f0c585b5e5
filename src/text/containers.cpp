#include "containers.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "blanks.h"
#include "qalora/core/error.h"

namespace qalora::text {
namespace {

// A place in the file that knows its line.
struct Cursor {
  std::string_view bytes;
  uint64_t at = 0;
  int64_t line = 1;
  uint64_t line_begin = 0;

  bool done() const { return at >= bytes.size(); }
  char peek() const { return bytes[at]; }
  void step() {
    if (bytes[at++] != '\n') return;
    ++line;
    line_begin = at;
  }
  void skip_space() {
    while (!done() && is_blank(peek())) step();
  }
  void advance_to(uint64_t target) {
    while (at < target) step();
  }
};

uint64_t line_end(std::string_view bytes, uint64_t at) {
  const void* found = at < bytes.size() ? std::memchr(bytes.data() + at, '\n', bytes.size() - at) : nullptr;
  return found ? static_cast<uint64_t>(static_cast<const char*>(found) - bytes.data()) : bytes.size();
}

// Moves behind a string that begins at the cursor's quote. A line break inside is no JSON, and the sign of a lost
// quote.
bool skip_string(Cursor& cursor) {
  cursor.step();
  while (!cursor.done() && cursor.peek() != '\n') {
    const char c = cursor.peek();
    cursor.step();
    if (c == '"') return true;
    if (c == '\\' && !cursor.done()) cursor.step();
  }
  return false;
}

// Moves behind the JSON value at the cursor. Returns why that is impossible, or "".
std::string skip_value(Cursor& cursor) {
  const uint64_t begin = cursor.at;
  uint64_t kinds = 0;  // a bit for each open bracket: 1 = object
  int depth = 0;
  while (!cursor.done()) {
    // A lost quote or bracket would have the whole file read once for each damaged record.
    if (cursor.at - begin > kMaxRecordBytes)
      return message("a record of more than ", kMaxRecordBytes, " bytes, the limit");
    const char c = cursor.peek();
    if (c == '"') {
      if (!skip_string(cursor)) return "a string is not closed before the end of its line";
    } else if (c == '{' || c == '[') {
      if (depth == kMaxDepth) return message("nested deeper than ", kMaxDepth, " levels");
      kinds = (kinds << 1) | (c == '{');
      ++depth;
      cursor.step();
    } else if (c == '}' || c == ']') {
      if (depth == 0) return "";  // the array's own end behind a bare value
      if ((kinds & 1) != (c == '}')) return message("'", c, "' closes a bracket of the other kind");
      kinds >>= 1;
      --depth;
      cursor.step();
    } else if (depth == 0 && (c == ',' || is_blank(c))) {
      return "";
    } else {
      cursor.step();
      continue;
    }
    if (depth == 0) return "";
  }
  return depth == 0 ? "" : "the file ends inside this record; is it a part of a file?";
}

uint64_t skip_blanks(std::string_view bytes, uint64_t at) {
  while (at < bytes.size() && (bytes[at] == ' ' || bytes[at] == '\t')) ++at;
  return at;
}

// How the records of an array are laid out, told by where one of them begins.
struct Layout {
  uint64_t indent = 0;   // of the line it begins in
  uint64_t deepest = 0;  // a line that begins with '{' no deeper than this begins a record
  std::vector<std::string_view>
      keys;  // with their quotes, that whole records begin with: objects inside records begin with others

  void learn(const Cursor& record) {
    const std::string_view before = record.bytes.substr(record.line_begin, record.at - record.line_begin);
    indent = std::min(skip_blanks(before, 0), before.size());
    deepest = before.find_first_not_of(" \t[") == std::string_view::npos ? before.size() : indent;
  }
  void learn_key(std::string_view key) {
    constexpr size_t kMost = 8;
    if (!key.empty() && keys.size() < kMost && std::find(keys.begin(), keys.end(), key) == keys.end())
      keys.push_back(key);
  }
};

// The first key of the object at `at`, with its quotes; "" where none begins there.
std::string_view first_key(std::string_view bytes, uint64_t at) {
  if (at >= bytes.size() || bytes[at] != '{') return {};
  const size_t quote = bytes.find_first_not_of(kBlanks, at + 1);
  if (quote == std::string_view::npos || bytes[quote] != '"') return {};
  const size_t end = bytes.find_first_of("\"\\\n", quote + 1);
  return end != std::string_view::npos && bytes[end] == '"' ? bytes.substr(quote, end + 1 - quote) : std::string_view{};
}

// Where the next object whose first key is `key` begins in [at, end); npos where none does. Inside of a string its
// quotes would be escaped. behind_comma: only one that stands behind another element.
size_t find_object(std::string_view bytes, uint64_t at, uint64_t end, std::string_view key, bool behind_comma) {
  if (key.empty()) return std::string_view::npos;
  for (size_t found = bytes.find(key, at + 1); found < end; found = bytes.find(key, found + 1)) {
    const size_t brace = bytes.find_last_not_of(kBlanks, found - 1);
    if (brace == std::string_view::npos || brace <= at || bytes[brace] != '{') continue;
    const size_t comma = bytes.find_last_not_of(kBlanks, brace - 1);
    if (!behind_comma || (comma > at && bytes[comma] == ',')) return brace;
  }
  return std::string_view::npos;
}

// The first object in [at, end) that begins with a key that records begin with.
size_t find_record(std::string_view bytes, uint64_t at, uint64_t end, const Layout& layout, bool behind_comma) {
  size_t first = std::string_view::npos;
  for (std::string_view key : layout.keys) first = std::min(first, find_object(bytes, at, end, key, behind_comma));
  return first;
}

// Where a record begins in the line at `at`, if the line's indentation says that one does.
size_t record_of_line(std::string_view bytes, uint64_t at, const Layout& layout) {
  uint64_t first = skip_blanks(bytes, at);
  const uint64_t indent = first - at;
  if (first >= bytes.size() || indent > layout.deepest) return std::string_view::npos;
  if (bytes[first] == '}' && indent <= layout.indent) first = skip_blanks(bytes, first + 1);  // "}, {"
  if (first < bytes.size() && bytes[first] == ',') first = skip_blanks(bytes, first + 1);
  return first < bytes.size() && bytes[first] == '{' ? first : std::string_view::npos;
}

// Where the record behind the damage at the cursor begins: in its line, where an object of the records' first key
// stands behind a comma, else at the next line that begins a record. Brackets cannot be counted, for the damage may be
// a lost one.
size_t next_record(const Cursor& cursor, const Layout& layout) {
  const std::string_view bytes = cursor.bytes;
  uint64_t end = line_end(bytes, cursor.at);
  const size_t in_line = find_record(bytes, cursor.at, end, layout, /*behind_comma=*/true);
  if (in_line != std::string_view::npos) return in_line;
  for (; end < bytes.size(); end = line_end(bytes, end + 1)) {
    const size_t record = record_of_line(bytes, end + 1, layout);
    if (record != std::string_view::npos) return record;
    // A key no deeper than the records: there is no indentation to go by.
    const uint64_t first = skip_blanks(bytes, end + 1);
    if (first < bytes.size() && bytes[first] == '"' && first - end - 1 <= layout.deepest) break;
  }
  return std::string_view::npos;
}

// Goes on behind the damage that `chunk` reports and the cursor stands at. Where no next record is found, the rest of
// the file is left out, which the fault says; it is fatal where the rest holds records.
void resynchronise(Cursor& cursor, const Layout& layout, Chunk& chunk) {
  const std::string_view bytes = cursor.bytes;
  const size_t next = next_record(cursor, layout);
  if (next != std::string_view::npos) return cursor.advance_to(next);
  chunk.fatal = find_record(bytes, cursor.at, bytes.size(), layout, /*behind_comma=*/false) != std::string_view::npos;
  chunk.fault +=
      message("; everything from here to the end of the file (", bytes.size() - cursor.at, " bytes) ",
              chunk.fatal ? "would be left out, because the records behind it cannot be told apart" : "is left out");
  const size_t last = bytes.find_last_not_of(kBlanks);
  cursor.advance_to(bytes[last] == ']' && last > cursor.at ? last : bytes.size());
}

// Deeper than kMaxDepth somewhere outside of strings?
bool too_deep(std::string_view text) {
  int depth = 0;
  bool in_string = false;
  for (size_t at = 0; at < text.size(); ++at) {
    const char c = text[at];
    if (c == '"') in_string = !in_string;
    if (in_string && c == '\\') ++at;
    if (in_string) continue;
    if (c == '{' || c == '[') ++depth;
    if (c == '}' || c == ']') --depth;
    if (depth > kMaxDepth) return true;
  }
  return false;
}

std::string size_fault(uint64_t size) {
  return size > kMaxRecordBytes ? message("a record of ", size, " bytes; the limit is ", kMaxRecordBytes) : "";
}

}  // namespace

void split_json_array(std::string_view bytes, uint64_t begin, const OnChunk& on_chunk) {
  Cursor cursor{bytes, begin, 1, begin};
  Layout layout;
  cursor.skip_space();
  cursor.step();  // '['
  bool first = true, whole = false;
  for (;;) {
    cursor.skip_space();
    if (cursor.done()) {
      constexpr const char* kEnds = "the file ends before the array's closing ']'; is it a part of a file?";
      return on_chunk({cursor.at, cursor.at, cursor.line, kEnds});
    }
    if (cursor.peek() == ']') break;
    if (!first && cursor.peek() == ',') {
      cursor.step();
      cursor.skip_space();
      if (cursor.done() || cursor.peek() == ']' || cursor.peek() == ',') {
        on_chunk({cursor.at, cursor.at, cursor.line, "no record behind ','"});
        continue;
      }
    } else if (!first) {
      Chunk stray{cursor.at, cursor.at, cursor.line, message("'", cursor.peek(), "' where ',' or ']' is expected")};
      first = cursor.peek() != '{';
      if (first) resynchronise(cursor, layout, stray);
      on_chunk(std::move(stray));
      if (first) continue;
    }
    const Cursor record = cursor;
    Chunk chunk{cursor.at, cursor.at, cursor.line, ""};
    layout.learn(record);
    if (!whole) layout.keys.clear();  // of a first record that was damaged
    if (!whole) layout.learn_key(first_key(bytes, cursor.at));
    chunk.fault = skip_value(cursor);
    chunk.end = cursor.at;
    first = !chunk.fault.empty() || cursor.at == record.at;
    if (first) {
      if (chunk.fault.empty()) chunk.fault = message("'", cursor.peek(), "' where a record is expected");
      cursor = record;
      resynchronise(cursor, layout, chunk);
    } else {
      whole |= bytes[record.at] == '{';
      layout.learn_key(first_key(bytes, record.at));
      chunk.fault = size_fault(chunk.end - chunk.begin);
    }
    on_chunk(std::move(chunk));
  }
  cursor.step();
  cursor.skip_space();
  if (cursor.done()) return;
  Chunk rest{cursor.at, cursor.at, cursor.line, "there is more behind the array's closing ']'"};
  rest.fatal = bytes.find('{', cursor.at) != std::string_view::npos;  // records, it seems
  on_chunk(std::move(rest));
}

void split_json_lines(std::string_view bytes, uint64_t begin, const OnChunk& on_chunk) {
  int64_t line = 1;
  for (uint64_t at = begin; at < bytes.size(); ++line) {
    const uint64_t end = line_end(bytes, at);
    Chunk chunk{at, end, line, ""};
    while (chunk.end > chunk.begin && is_blank(bytes[chunk.end - 1])) --chunk.end;
    if (chunk.end > chunk.begin) {
      chunk.fault = size_fault(chunk.end - chunk.begin);
      if (chunk.fault.empty() && too_deep(bytes.substr(chunk.begin, chunk.end - chunk.begin))) {
        chunk.fault = message("nested deeper than ", kMaxDepth, " levels");
      }
      on_chunk(std::move(chunk));
    }
    at = end + 1;
  }
}

CsvRow next_csv_row(std::string_view bytes, uint64_t& at, int64_t& line, std::vector<std::string>* cells) {
  if (cells != nullptr) cells->assign(1, "");
  CsvRow row;
  const uint64_t begin = at;
  uint64_t quote = at;  // the last opening one
  bool cell_is_empty = true;
  while (at < bytes.size() && (!row.open || at - begin <= kMaxRecordBytes)) {
    const char c = bytes[at++];
    line += c == '\n';
    if (row.open) {
      if (c != '"') {
        if (cells != nullptr) cells->back() += c;
      } else if (at < bytes.size() && bytes[at] == '"') {
        if (cells != nullptr) cells->back() += bytes[at];
        ++at;
      } else {
        row.open = false;
        const bool loose = at < bytes.size() && bytes[at] != ',' && bytes[at] != '\n' && bytes[at] != '\r';
        if (loose && !row.loose) row.fault_quote = quote;
        row.loose |= loose;
      }
    } else if (c == '\n' || (c == '\r' && at < bytes.size() && bytes[at] == '\n')) {
      if (c == '\r') {
        ++at;
        ++line;
      }
      return row;
    } else if (c == ',') {
      if (cells != nullptr) cells->emplace_back();
      cell_is_empty = true;
      continue;
    } else if (c == '"' && cell_is_empty) {
      row.open = true;
      quote = at - 1;
    } else if (cells != nullptr) {
      cells->back() += c;
    }
    cell_is_empty = false;
  }
  if (!row.loose) row.fault_quote = quote;
  return row;
}

void split_csv(std::string_view bytes, uint64_t begin, CsvQuotes quotes, const OnChunk& on_chunk) {
  int64_t line = 1;
  bool many_lines = false;  // a whole row spanned several
  for (uint64_t at = begin; at < bytes.size();) {
    Chunk chunk{at, at, line, ""};
    const CsvRow row = next_csv_row(bytes, at, line, nullptr);
    chunk.end = at;
    const auto front = bytes.substr(chunk.begin, std::min<uint64_t>(at - chunk.begin, 3));
    if (front == "\n" || front == "\r\n") continue;
    if (row.open || (row.loose && quotes == CsvQuotes::kStrict)) {
      chunk.fault = row.open ? "a quote is opened and never closed"
                             : "text stands behind a closing quote; a quote may be missing";
      // The quote may have swallowed the rows behind its line. Where cells span lines nobody can tell which line begins
      // a row.
      const uint64_t again = std::min<uint64_t>(line_end(bytes, row.fault_quote) + 1, bytes.size());
      if (many_lines && again < at) {
        chunk.fatal = true;
        chunk.fault += "; where the next row begins cannot be told, because cells of this file span lines";
      } else if (again < at) {
        const std::string_view passed = bytes.substr(chunk.begin, again - chunk.begin);
        at = again;
        line = chunk.line + std::count(passed.begin(), passed.end(), '\n');
      }
    } else {
      chunk.fault = size_fault(at - chunk.begin);
      many_lines |= line > chunk.line + 1;
    }
    on_chunk(std::move(chunk));
  }
}

void split_paragraphs(std::string_view bytes, uint64_t begin, const OnChunk& on_chunk) {
  int64_t line = 1;
  Chunk chunk;
  bool open = false;
  const auto close = [&] {
    if (!std::exchange(open, false)) return;
    chunk.fault = size_fault(chunk.end - chunk.begin);
    on_chunk(chunk);
  };
  for (uint64_t at = begin; at < bytes.size(); ++line) {
    const uint64_t end = line_end(bytes, at);
    uint64_t last = end;
    while (last > at && is_blank(bytes[last - 1])) --last;
    if (last == at) {
      close();
    } else {
      if (open && last - chunk.begin > kMaxTextBytes) close();
      if (!std::exchange(open, true)) chunk = {at, last, line, ""};
      chunk.end = last;
    }
    at = end + 1;
  }
  close();
}

}  // namespace qalora::text
