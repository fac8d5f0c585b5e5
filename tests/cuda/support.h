// What the tests of kernels share. A check is written once:
//
//   KERNEL_CHECK(dequantize, WholeRowsAreTheCpusBits) {
//     Buffer<uint16_t> out(count);
//     ASSERT_EQ(api.dequantize(..., out.data(), ...), kernels::Status::kOk);
//     results.add(out.download());
//     expect_close(...);
//   }
//
// and run on the real kernels in every order of the threads, where it must hold and `results` must be the same bits
// each time; and on each mutant of kernels/cuda/dequantize.cu, of which at least one check must see something wrong: a
// failed expectation, other bits in another order, or a fault of the shim. The first parameter is the name of the
// test's file without _test.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "qalora/kernels/cuda.h"

namespace qalora::test::cuda {

using kernels::Status;
using kernels::cuda::Api;

// What a run gave, compared between orders bit by bit.
class Results {
 public:
  template <typename T>
  void add(const std::vector<T>& values) {
    const auto* bytes = reinterpret_cast<const unsigned char*>(values.data());
    bytes_.insert(bytes_.end(), bytes, bytes + values.size() * sizeof(T));
  }
  bool operator==(const Results&) const = default;

 private:
  std::vector<unsigned char> bytes_;
};

// Device memory of exactly `bytes`, aligned to 256 as cudaMalloc's; on the shim a heap block of its own, so that
// AddressSanitizer sees the first byte beyond.
void* allocate(int64_t bytes);
void release(void* memory);
void copy_in(void* to, const void* from, int64_t bytes);
void copy_out(void* to, const void* from, int64_t bytes);

// `count` elements on the device, of 0xff bytes (NaN) until written. `shift` elements lie unused before them: a less
// aligned address.
template <typename T>
class Buffer {
 public:
  explicit Buffer(int64_t count, int64_t shift = 0)
      : Buffer(std::vector<T>(static_cast<size_t>(count), kUnset()), shift) {}
  explicit Buffer(const std::vector<T>& values, int64_t shift = 0)
      : count_(static_cast<int64_t>(values.size())),
        shift_(shift) {
    memory_ = static_cast<T*>(allocate((count_ + shift_) * static_cast<int64_t>(sizeof(T))));
    upload(values);
  }
  ~Buffer() { release(memory_); }
  Buffer(Buffer&& other) : memory_(std::exchange(other.memory_, nullptr)), count_(other.count_), shift_(other.shift_) {}
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  T* data() const { return memory_ + shift_; }
  int64_t size() const { return count_; }
  void upload(const std::vector<T>& values) {
    copy_in(data(), values.data(), count_ * static_cast<int64_t>(sizeof(T)));
  }
  std::vector<T> download() const {
    std::vector<T> values(static_cast<size_t>(count_));
    copy_out(values.data(), data(), count_ * static_cast<int64_t>(sizeof(T)));
    return values;
  }

 private:
  static T kUnset() {
    T value;
    memset(&value, 0xff, sizeof(T));
    return value;
  }
  T* memory_ = nullptr;
  int64_t count_ = 0, shift_ = 0;
};

// ---- Numbers
// ------------------------------------------------------------------------------------------------------------------
using kernels::cuda::Type;

// To and from the bits of an activation's type; rounded to nearest even.
float to_float(uint16_t bits, Type type);
uint16_t to_bits(float value, Type type);
// The same for memory of `type`: float's 4 bytes or a 16-bit type's 2 bytes each.
std::vector<unsigned char> encode(const std::vector<float>& values, Type type);
std::vector<float> decode(const std::vector<unsigned char>& memory, Type type);
// Half the distance of two neighbours of 1: what one rounding may add, relative.
double unit_roundoff(Type type);
const char* name_of(Type type);
constexpr Type kAllTypes[] = {Type::kFloat, Type::kBFloat16, Type::kHalf};
constexpr Type kHalfTypes[] = {Type::kBFloat16, Type::kHalf};

// Small, and the same on every machine.
class Generator {
 public:
  explicit Generator(uint64_t seed) : state_(seed * 2 + 1) {}
  uint32_t next();
  int64_t below(int64_t bound) { return static_cast<int64_t>(next() % static_cast<uint64_t>(bound)); }
  float uniform(float low, float high) { return low + (high - low) * static_cast<float>(next() >> 8) * 0x1p-24f; }
  std::vector<float> uniforms(int64_t count, float low, float high);

 private:
  uint64_t state_;
};

// One failure that tells the worst element, how many there are and where the first lies. NaN equals nothing.
void expect_close(const std::vector<float>& actual, const std::vector<double>& expected,
                  const std::vector<double>& tolerance, const std::string& what);
void expect_close(const std::vector<float>& actual, const std::vector<double>& expected, double tolerance,
                  const std::string& what);
template <typename T>
void expect_same_bits(const std::vector<T>& actual, const std::vector<T>& expected, const std::string& what) {
  ASSERT_EQ(actual.size(), expected.size()) << what;
  for (size_t i = 0; i < actual.size(); ++i) {
    ASSERT_EQ(memcmp(&actual[i], &expected[i], sizeof(T)), 0)
        << what << ", element " << i << ": " << +actual[i] << ", not " << +expected[i];
  }
}

// ---- Checks
// ---------------------------------------------------------------------------------------------------------------------
using CheckFunction = void (*)(const Api& api, Results& results);
bool add_check(const char* suite, const char* name, CheckFunction function, const char* file, int line);

#define KERNEL_CHECK(suite, name)                                                                                      \
  static void check_##suite##_##name(const ::qalora::kernels::cuda::Api& api, ::qalora::test::cuda::Results& results); \
  [[maybe_unused]] static const bool added_##suite##_##name =                                                          \
      ::qalora::test::cuda::add_check(#suite, #name, check_##suite##_##name, __FILE__, __LINE__);                      \
  static void check_##suite##_##name([[maybe_unused]] const ::qalora::kernels::cuda::Api& api,                         \
                                     [[maybe_unused]] ::qalora::test::cuda::Results& results)

}  // namespace qalora::test::cuda
