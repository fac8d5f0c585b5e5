// GGUF files built by hand, sound or not, and an independent reader of sound ones. Shares no code with the program.
#pragma once

#include <cstdint>
#include <cstring>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "support/raw_bytes.h"

namespace qalora::test {

inline std::string gguf_string(const std::string& text) { return raw(uint64_t{text.size()}) + text; }

struct GgufBytes {
  uint32_t version = 3;
  std::string magic = "GGUF";
  uint64_t alignment = 32;
  std::vector<std::string> entries = {}, tensors = {};
  std::string data = {};
  int64_t claimed_entries = -1, claimed_tensors = -1;  // -1: as many as there are

  GgufBytes& entry(const std::string& key, uint32_t type, const std::string& value) {
    entries.push_back(gguf_string(key) + raw(type) + value);
    return *this;
  }
  GgufBytes& u32(const std::string& key, uint32_t value) { return entry(key, 4, raw(value)); }
  GgufBytes& f32(const std::string& key, float value) { return entry(key, 6, raw(value)); }
  GgufBytes& text(const std::string& key, const std::string& value) { return entry(key, 8, gguf_string(value)); }
  GgufBytes& tensor_raw(const std::string& name, const std::vector<uint64_t>& dims, uint32_t type, uint64_t offset) {
    std::string bytes = gguf_string(name) + raw(static_cast<uint32_t>(dims.size()));
    for (const uint64_t dim : dims) bytes += raw(dim);
    tensors.push_back(bytes + raw(type) + raw(offset));
    return *this;
  }
  // dims: fastest first, as the file has them
  GgufBytes& tensor(const std::string& name, const std::vector<uint64_t>& dims, uint32_t type,
                    const std::string& bytes) {
    tensor_raw(name, dims, type, data.size());
    data += bytes;
    data.resize((data.size() + alignment - 1) / alignment * alignment);
    return *this;
  }
  std::string bytes() const {
    std::string result = magic + raw(version);
    result += raw(claimed_tensors < 0 ? uint64_t{tensors.size()} : static_cast<uint64_t>(claimed_tensors));
    result += raw(claimed_entries < 0 ? uint64_t{entries.size()} : static_cast<uint64_t>(claimed_entries));
    for (const auto& entry : entries) result += entry;
    for (const auto& tensor : tensors) result += tensor;
    if (alignment > 0 && alignment <= 4096) result.resize((result.size() + alignment - 1) / alignment * alignment);
    return result + data;
  }
};

// What a sound file holds, read by the format's text: scalars as text, tensors as bytes.
struct PlainGguf {
  struct Tensor {
    std::vector<uint64_t> dims;
    uint32_t type = 0;
    std::string bytes;
  };
  std::map<std::string, std::string> scalars;  // "u32:7", "f32:0.5", "bool:1", "string:llama", "array:u32?:count"
  std::map<std::string, std::vector<std::string>> strings;
  std::vector<std::string> order;  // of tensors
  std::map<std::string, Tensor> tensors;
};

class PlainGgufReader {
 public:
  explicit PlainGgufReader(const std::string& bytes) : bytes_(bytes) {}

  PlainGguf read() {
    PlainGguf result;
    if (take(4) != "GGUF" || number<uint32_t>() != 3) throw std::runtime_error("no GGUF of version 3");
    const auto tensors = number<uint64_t>(), entries = number<uint64_t>();
    for (uint64_t i = 0; i < entries; ++i) entry(result);
    std::vector<uint64_t> offsets;
    for (uint64_t i = 0; i < tensors; ++i) {
      const std::string name = string();
      PlainGguf::Tensor tensor;
      const auto dims = number<uint32_t>();
      for (uint32_t d = 0; d < dims; ++d) tensor.dims.push_back(number<uint64_t>());
      tensor.type = number<uint32_t>();
      offsets.push_back(number<uint64_t>());
      result.order.push_back(name);
      result.tensors[name] = tensor;
    }
    const uint64_t data = (at_ + 31) / 32 * 32;
    uint64_t expected = 0;
    for (uint64_t i = 0; i < tensors; ++i) {
      PlainGguf::Tensor& tensor = result.tensors.at(result.order[i]);
      if (offsets[i] != expected) throw std::runtime_error("an offset that is no running sum");
      const uint64_t size = size_of(tensor);
      tensor.bytes = bytes_.substr(data + offsets[i], size);
      if (tensor.bytes.size() != size) throw std::runtime_error("too short");
      expected += (size + 31) / 32 * 32;
    }
    if (data + expected != bytes_.size())
      throw std::runtime_error("the last tensor is not padded, or there is more behind it");
    return result;
  }

 private:
  std::string take(uint64_t count) {
    if (count > bytes_.size() - at_) throw std::runtime_error("too short");
    at_ += count;
    return bytes_.substr(at_ - count, count);
  }
  template <typename T>
  T number() {
    T value;
    std::memcpy(&value, take(sizeof value).data(), sizeof value);
    return value;
  }
  std::string string() { return take(number<uint64_t>()); }

  void entry(PlainGguf& result) {
    const std::string key = string();
    const auto type = number<uint32_t>();
    if (type == 9) {
      const auto element = number<uint32_t>();
      const auto count = number<uint64_t>();
      result.scalars[key] = "array:" + std::to_string(element) + ":" + std::to_string(count);
      for (uint64_t i = 0; i < count; ++i) {
        if (element == 8) {
          result.strings[key].push_back(string());
        } else {
          take(element == 7 ? 1 : 4);
        }
      }
      return;
    }
    switch (type) {
      case 4: result.scalars[key] = "u32:" + std::to_string(number<uint32_t>()); break;
      case 6: result.scalars[key] = "f32:" + std::to_string(number<float>()); break;
      case 7: result.scalars[key] = "bool:" + std::to_string(static_cast<int>(number<uint8_t>())); break;
      case 8: result.scalars[key] = "string:" + string(); break;
      default: throw std::runtime_error("a type that is not written here: " + std::to_string(type));
    }
  }

  static uint64_t size_of(const PlainGguf::Tensor& tensor) {
    uint64_t elements = 1;
    for (const uint64_t dim : tensor.dims) elements *= dim;
    switch (tensor.type) {
      case 0: return elements * 4;
      case 1:
      case 30: return elements * 2;
      case 3: return elements / 32 * 20;
      case 8: return elements / 32 * 34;
      default: throw std::runtime_error("another type of tensor");
    }
  }

  const std::string& bytes_;
  uint64_t at_ = 0;
};

}  // namespace qalora::test
