#include "containers.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "qalora/core/error.h"

namespace qalora::text {
namespace {

bool is_space(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }

// A place in the file that knows its line.
struct Cursor {
  std::string_view bytes;
  uint64_t at = 0;
  int64_t line = 1;

  bool done() const { return at >= bytes.size(); }
  char peek() const { return bytes[at]; }
  void step() { line += bytes[at++] == '\n'; }
  void skip_space() {
    while (!done() && is_space(peek())) step();
  }
};

uint64_t line_end(std::string_view bytes, uint64_t at) {
  const void* found = at < bytes.size() ? std::memchr(bytes.data() + at, '\n', bytes.size() - at) : nullptr;
  return found ? static_cast<uint64_t>(static_cast<const char*>(found) - bytes.data()) : bytes.size();
}

// Moves behind a string that begins at the cursor's quote. A line break inside is no JSON, and the sign of a lost quote.
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
  uint64_t kinds = 0;  // a bit for each open bracket: 1 = object
  int depth = 0;
  while (!cursor.done()) {
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
    } else if (depth == 0 && (c == ',' || is_space(c))) {
      return "";
    } else {
      cursor.step();
      continue;
    }
    if (depth == 0) return "";
  }
  return depth == 0 ? "" : "the file ends inside this record; is it a part of a file?";
}

// To the next line that begins with '{', after damage.
void resynchronise(Cursor& cursor) {
  while (!cursor.done()) {
    const uint64_t end = line_end(cursor.bytes, cursor.at);
    cursor.at = end;
    if (!cursor.done()) cursor.step();
    uint64_t first = cursor.at;
    while (first < cursor.bytes.size() && (cursor.bytes[first] == ' ' || cursor.bytes[first] == '\t')) ++first;
    if (first < cursor.bytes.size() && cursor.bytes[first] == '{') return;
  }
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
  Cursor cursor{bytes, begin, 1};
  cursor.skip_space();
  cursor.step();  // '['
  bool first = true;
  for (;;) {
    cursor.skip_space();
    if (cursor.done())
      return on_chunk(
          {cursor.at, cursor.at, cursor.line, "the file ends before the array's closing ']'; is it a part of a file?"});
    if (cursor.peek() == ']') break;
    if (!first && cursor.peek() == ',') {
      cursor.step();
      cursor.skip_space();
      if (cursor.done() || cursor.peek() == ']' || cursor.peek() == ',') {
        on_chunk({cursor.at, cursor.at, cursor.line, "no record behind ','"});
        continue;
      }
    } else if (!first) {
      on_chunk({cursor.at, cursor.at, cursor.line, message("'", cursor.peek(), "' where ',' or ']' is expected")});
      if (cursor.peek() != '{') {
        resynchronise(cursor);
        first = true;
        continue;
      }
    }
    Chunk chunk{cursor.at, cursor.at, cursor.line, ""};
    chunk.fault = skip_value(cursor);
    chunk.end = cursor.at;
    first = !chunk.fault.empty();
    if (cursor.at == chunk.begin) cursor.step();  // a stray character
    if (!first) chunk.fault = size_fault(chunk.end - chunk.begin);
    on_chunk(std::move(chunk));
    if (first) resynchronise(cursor);
  }
  cursor.step();
  cursor.skip_space();
  if (!cursor.done()) on_chunk({cursor.at, cursor.at, cursor.line, "there is more behind the array's closing ']'"});
}

void split_json_lines(std::string_view bytes, uint64_t begin, const OnChunk& on_chunk) {
  int64_t line = 1;
  for (uint64_t at = begin; at < bytes.size(); ++line) {
    const uint64_t end = line_end(bytes, at);
    Chunk chunk{at, end, line, ""};
    while (chunk.end > chunk.begin && is_space(bytes[chunk.end - 1])) --chunk.end;
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

bool next_csv_row(std::string_view bytes, uint64_t& at, int64_t& line, std::vector<std::string>* cells) {
  if (cells != nullptr) cells->assign(1, "");
  bool quoted = false, cell_is_empty = true;
  while (at < bytes.size()) {
    const char c = bytes[at++];
    line += c == '\n';
    if (quoted) {
      if (c != '"') {
        if (cells != nullptr) cells->back() += c;
      } else if (at < bytes.size() && bytes[at] == '"') {
        if (cells != nullptr) cells->back() += bytes[at];
        ++at;
      } else {
        quoted = false;
      }
    } else if (c == '\n' || (c == '\r' && at < bytes.size() && bytes[at] == '\n')) {
      if (c == '\r') {
        ++at;
        ++line;
      }
      return true;
    } else if (c == ',') {
      if (cells != nullptr) cells->emplace_back();
      cell_is_empty = true;
      continue;
    } else if (c == '"' && cell_is_empty) {
      quoted = true;
    } else if (cells != nullptr) {
      cells->back() += c;
    }
    cell_is_empty = false;
  }
  return !quoted;
}

void split_csv(std::string_view bytes, uint64_t begin, const OnChunk& on_chunk) {
  int64_t line = 1;
  for (uint64_t at = begin; at < bytes.size();) {
    Chunk chunk{at, at, line, ""};
    const bool closed = next_csv_row(bytes, at, line, nullptr);
    chunk.end = at;
    const auto row = bytes.substr(chunk.begin, std::min<uint64_t>(at - chunk.begin, 3));
    if (row == "\n" || row == "\r\n") continue;
    chunk.fault = closed ? size_fault(at - chunk.begin) : "a quote is opened and never closed";
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
    while (last > at && is_space(bytes[last - 1])) --last;
    if (last == at) {
      close();
    } else {
      if (!std::exchange(open, true)) chunk = {at, last, line, ""};
      chunk.end = last;
    }
    at = end + 1;
  }
  close();
}

}  // namespace qalora::text
