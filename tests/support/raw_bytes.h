// Numbers as files have them.
#pragma once

#include <cstring>
#include <string>

namespace qalora::test {

template <typename T>
std::string raw(T value) {
  std::string bytes(sizeof value, '\0');
  std::memcpy(bytes.data(), &value, sizeof value);
  return bytes;
}

}  // namespace qalora::test
