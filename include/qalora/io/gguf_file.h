// GGUF, the container of llama.cpp: typed metadata, then tensors in blocks. Versions 2 and 3, little endian.
// The rules are those of the reference reader (ggml's gguf.cpp), which is stricter than the format's text. No LibTorch
// here.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "qalora/core/file.h"

namespace qalora::io {

enum class GgufValueType : uint32_t {
  kU8,
  kI8,
  kU16,
  kI16,
  kU32,
  kI32,
  kF32,
  kBool,
  kString,
  kArray,
  kU64,
  kI64,
  kF64
};

// A value of the metadata as it lies in the file: numbers and strings are taken out when they are asked for.
struct GgufValue {
  GgufValueType type = GgufValueType::kU8;  // of an array: its elements'; never kArray
  bool is_array = false;
  uint64_t count = 1;                // elements
  std::span<const std::byte> bytes;  // a string's characters; an array's elements back to back
};

// The types of tensors that this program computes with; the numbers are the format's.
enum class GgufType : uint32_t {
  kF32 = 0,
  kF16 = 1,
  kQ4_0 = 2,
  kQ4_1 = 3,
  kQ5_0 = 6,
  kQ5_1 = 7,
  kQ8_0 = 8,
  kBF16 = 30
};

// How a type lies in memory: so many elements of a row in so many bytes.
struct GgufLayout {
  uint32_t id;
  const char* name;
  uint32_t block_elements, block_bytes;
};
const GgufLayout* gguf_layout(uint32_t id);  // nullptr for a number that no type has
const GgufLayout& gguf_layout(GgufType type);

struct GgufTensor {
  uint32_t type = 0;           // gguf_layout(type) is there
  std::vector<int64_t> shape;  // slowest dimension first, as everywhere here: the reverse of the file
  std::span<const std::byte> bytes;
};

// What a file holds. Spans point into the bytes that were parsed.
struct GgufContents {
  uint32_t version = 0;
  uint64_t alignment = 32;
  std::map<std::string, GgufValue, std::less<>> metadata;
  std::map<std::string, GgufTensor, std::less<>> tensors;
  std::string name;  // begins every message

  bool has(std::string_view key) const { return metadata.contains(key); }
  // Nothing when the key is absent; DataError when it has another type. Whole numbers may have any width.
  std::optional<int64_t> integer(std::string_view key) const;  // not negative
  std::optional<int64_t> signed_integer(std::string_view key) const;
  std::optional<double> number(std::string_view key) const;  // finite
  std::optional<bool> flag(std::string_view key) const;
  std::optional<std::string> text(std::string_view key) const;
  std::optional<std::vector<std::string_view>> texts(std::string_view key) const;
  std::optional<std::vector<float>> floats(std::string_view key) const;
  std::optional<std::vector<int64_t>> integers(std::string_view key) const;
};

// Every size is checked against the bytes that are there before anything is made of it. DataError begins with `name`.
GgufContents parse_gguf(std::span<const std::byte> bytes, const std::string& name);

// A mapped file with its contents.
class GgufFile {
 public:
  explicit GgufFile(const fs::path& path) : map_(path), contents_(parse_gguf(map_.bytes(), path.string())) {}
  const GgufContents& contents() const { return contents_; }
  const fs::path& path() const { return map_.path(); }
  uint64_t file_bytes() const { return map_.bytes().size(); }
  void release(std::span<const std::byte> part) const { map_.release(part); }

 private:
  MappedFile map_;
  GgufContents contents_;
};

}  // namespace qalora::io
