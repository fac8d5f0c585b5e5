// Little-endian numbers out of bytes that nobody vouches for.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>

#include "qalora/core/error.h"

namespace qalora::io {

class ByteReader {
 public:
  // where: begins every message, the file's name and what part of it this is.
  ByteReader(std::span<const std::byte> bytes, std::string where) : bytes_(bytes), where_(std::move(where)) {}

  uint64_t position() const { return position_; }
  uint64_t left() const { return bytes_.size() - position_; }
  const std::string& where() const { return where_; }

  std::span<const std::byte> take(uint64_t count) {
    QALORA_REQUIRE(count <= left(), DataError, where_, ": ends at byte ", bytes_.size(), ", but ", count,
                   " bytes were expected from byte ", position_, " on; the file is cut short or damaged");
    const auto part = bytes_.subspan(position_, count);
    position_ += count;
    return part;
  }
  std::string_view text(uint64_t count) {
    const auto part = take(count);
    return {reinterpret_cast<const char*>(part.data()), part.size()};
  }
  // Up to and without the next `\n`, which is taken too.
  std::string_view line() {
    const std::string_view rest(reinterpret_cast<const char*>(bytes_.data()) + position_, left());
    const size_t length = rest.find('\n');
    QALORA_REQUIRE(length != std::string_view::npos, DataError, where_, ": a line that begins at byte ", position_,
                   " never ends");
    position_ += length + 1;
    return rest.substr(0, length);
  }
  template <typename T>
  T number() {
    T value;
    std::memcpy(&value, take(sizeof value).data(), sizeof value);
    return value;
  }

 private:
  std::span<const std::byte> bytes_;
  std::string where_;
  uint64_t position_ = 0;
};

}  // namespace qalora::io
