// Sizes that cannot overflow. Every product and sum of numbers that came from a file goes through here.
#pragma once

#include <cstdint>
#include <optional>
#include <span>

namespace qalora {

// a * b and a + b, or nothing where the result does not fit in 64 bits.
inline std::optional<uint64_t> checked_mul(uint64_t a, uint64_t b) {
  uint64_t result = 0;
  if (__builtin_mul_overflow(a, b, &result)) return std::nullopt;
  return result;
}

inline std::optional<uint64_t> checked_add(uint64_t a, uint64_t b) {
  uint64_t result = 0;
  if (__builtin_add_overflow(a, b, &result)) return std::nullopt;
  return result;
}

// Product of all dimensions; nothing where one is negative or the product exceeds the signed 64-bit range.
inline std::optional<int64_t> checked_elements(std::span<const int64_t> shape) {
  int64_t product = 1;
  for (int64_t dimension : shape) {
    if (dimension < 0 || __builtin_mul_overflow(product, dimension, &product)) return std::nullopt;
  }
  return product;
}

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace qalora
