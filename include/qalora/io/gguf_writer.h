// Writes a GGUF file of version 3. No LibTorch here.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "qalora/core/file.h"
#include "qalora/io/gguf_file.h"

namespace qalora::io {

// Key and value pairs in the order in which they are added. llama.cpp takes each key in one type only, so there is a
// function a type.
class GgufMetadata {
 public:
  void text(std::string_view key, std::string_view value);
  void u32(std::string_view key, int64_t value);  // InternalError when it does not fit
  void f32(std::string_view key, double value);
  void flag(std::string_view key, bool value);
  void texts(std::string_view key, const std::vector<std::string>& values);
  void floats(std::string_view key, const std::vector<float>& values);
  void i32s(std::string_view key, const std::vector<int32_t>& values);

  uint64_t count() const { return count_; }
  const std::string& bytes() const { return bytes_; }

 private:
  void begin(std::string_view key, GgufValueType type);
  void begin_array(std::string_view key, GgufValueType type, size_t count);
  template <typename T>
  void number(T value);
  void string(std::string_view value);

  uint64_t count_ = 0;
  std::string bytes_;
};

struct GgufPlanned {
  std::string name;
  GgufType type;
  std::vector<int64_t> shape;  // slowest dimension first
  uint64_t bytes() const;
};

// Of the whole file.
uint64_t gguf_file_bytes(const GgufMetadata& metadata, const std::vector<GgufPlanned>& plan);

// Tensors come in the plan's order, each whole or in pieces from its front.
class GgufWriter {
 public:
  GgufWriter(const fs::path& path, const GgufMetadata& metadata, std::vector<GgufPlanned> plan);
  void write(const std::string& name, std::span<const std::byte> piece);
  void finish();  // every tensor written; syncs and renames

 private:
  std::vector<GgufPlanned> plan_;
  size_t next_ = 0;
  uint64_t written_ = 0;  // of the current tensor
  AtomicFile file_;
};

}  // namespace qalora::io
