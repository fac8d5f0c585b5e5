// Zip archives and pickles made by hand, so that tests can write what torch.save never would.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "support/raw_bytes.h"

namespace qalora::test {

template <typename T>
void put(std::string& bytes, size_t position, T value) {
  std::memcpy(bytes.data() + position, &value, sizeof value);
}

// A zip archive of stored entries, and where its headers begin.
struct Zip {
  std::string bytes;
  std::vector<size_t> local, central;
  size_t directory = 0, end = 0;
};

inline Zip make_zip(const std::vector<std::pair<std::string, std::string>>& entries) {
  Zip zip;
  const auto u16 = [](size_t value) { return raw(static_cast<uint16_t>(value)); };
  const auto u32 = [](size_t value) { return raw(static_cast<uint32_t>(value)); };
  // Flags, method, time, date, crc, both sizes, the name's length, none of extra.
  const auto common = [&](const auto& entry) {
    return u16(0) + u16(0) + u32(0) + u32(0) + u32(entry.second.size()) + u32(entry.second.size()) +
           u16(entry.first.size()) + u16(0);
  };
  for (const auto& entry : entries) {
    zip.local.push_back(zip.bytes.size());
    zip.bytes += "PK\x03\x04" + u16(20) + common(entry) + entry.first + entry.second;
  }
  zip.directory = zip.bytes.size();
  for (size_t i = 0; i < entries.size(); ++i) {
    zip.central.push_back(zip.bytes.size());
    zip.bytes += "PK\x01\x02" + u16(20) + u16(20) + common(entries[i]) + std::string(10, '\0') + u32(zip.local[i]) +
                 entries[i].first;
  }
  zip.end = zip.bytes.size();
  zip.bytes += "PK\x05\x06" + u32(0) + u16(entries.size()) + u16(entries.size());
  zip.bytes += u32(zip.end - zip.directory) + u32(zip.directory) + u16(0);
  return zip;
}

// Pieces of pickles.
inline std::string pickled(const std::string& text) {
  return std::string("X").append(raw(static_cast<uint32_t>(text.size()))).append(text);
}
inline std::string pickled(int64_t number) { return std::string("\x8a\x08", 2) + raw(number); }
inline std::string pickled_tuple(const std::vector<int64_t>& numbers) {
  std::string bytes = "(";
  for (const int64_t number : numbers) bytes += pickled(number);
  return bytes += "t";
}
inline std::string pickled_name(const std::string& module, const std::string& name) {
  return "c" + module + "\n" + name + "\n";
}
inline std::string pickle(const std::string& opcodes) { return std::string("\x80\x02", 2) + opcodes + "."; }

struct TensorText {
  std::string key = "0", storage = "FloatStorage";
  int64_t elements = 4, offset = 0;
  std::vector<int64_t> shape = {2, 2}, strides = {2, 1};
};
inline std::string pickled(const TensorText& tensor) {
  std::string storage = "(";
  storage += pickled("storage") + pickled_name("torch", tensor.storage) + pickled(tensor.key) + pickled("cpu");
  storage += pickled(tensor.elements) + "tQ";
  return pickled_name("torch._utils", "_rebuild_tensor_v2") + "(" + storage + pickled(tensor.offset) +
         pickled_tuple(tensor.shape) + pickled_tuple(tensor.strides) + "\x89" +
         pickled_name("collections", "OrderedDict") + ")R" + "tR";
}
// {name: tensor, ..}
inline std::string pickled_state(const std::vector<std::pair<std::string, TensorText>>& tensors) {
  std::string bytes = "}(";
  for (const auto& [name, tensor] : tensors) bytes += pickled(name) + pickled(tensor);
  return bytes += "u";
}

}  // namespace qalora::test
