#include "qalora/tensor/random.h"

#include <ATen/ATen.h>

#include <cmath>
#include <numbers>
#include <numeric>
#include <utility>

#include "qalora/core/error.h"

namespace qalora::tensor {

namespace {

// FNV-1a, 64 bits.
uint64_t hash(std::string_view text) {
  uint64_t value = 0xcbf29ce484222325;
  for (unsigned char c : text) value = (value ^ c) * 0x100000001b3;
  return value;
}

}  // namespace

void philox4x32_10(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]) {
  uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3], k0 = key[0], k1 = key[1];
  for (int round = 0; round < 10; ++round) {
    const uint64_t first = uint64_t{0xD2511F53} * c0, second = uint64_t{0xCD9E8D57} * c2;
    c0 = static_cast<uint32_t>(second >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(second);
    c2 = static_cast<uint32_t>(first >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(first);
    k0 += 0x9E3779B9, k1 += 0xBB67AE85;
  }
  out[0] = c0, out[1] = c1, out[2] = c2, out[3] = c3;
}

// The seed is the key; the purpose and the index choose where in the 128-bit counter space the stream starts.
RandomStream::RandomStream(uint64_t seed, std::string_view purpose, uint64_t index)
    : key_{static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)},
      high_counter_(hash(purpose) + index) {}

void RandomStream::refill() {
  const uint32_t counter[4] = {static_cast<uint32_t>(counter_), static_cast<uint32_t>(counter_ >> 32),
                               static_cast<uint32_t>(high_counter_), static_cast<uint32_t>(high_counter_ >> 32)};
  philox4x32_10(counter, key_, block_);
  ++counter_;
  used_ = 0;
}

uint32_t RandomStream::next_u32() {
  if (used_ == 4) refill();
  return block_[used_++];
}

uint64_t RandomStream::next_u64() {
  const uint64_t low = next_u32();
  return uint64_t{next_u32()} << 32 | low;
}

uint64_t RandomStream::below(uint64_t bound) {
  QALORA_CHECK(bound > 0, "no number lies below 0");
  // 2^64 mod bound: values under it are drawn again, so that every remainder is equally likely.
  const uint64_t rejected = (0 - bound) % bound;
  uint64_t value = next_u64();
  while (value < rejected) value = next_u64();
  return value % bound;
}

double RandomStream::uniform() { return static_cast<double>(next_u64() >> 11) * 0x1p-53; }

double RandomStream::normal() {
  if (std::exchange(has_spare_, false)) return spare_;
  const double radius = std::sqrt(-2.0 * std::log(1.0 - uniform()));  // 1 - u lies in (0, 1]: the logarithm is finite
  const double angle = 2.0 * std::numbers::pi * uniform();
  spare_ = radius * std::sin(angle);
  has_spare_ = true;
  return radius * std::cos(angle);
}

std::vector<int64_t> RandomStream::permutation(int64_t count) {
  QALORA_CHECK(count >= 0, "count is ", count);
  std::vector<int64_t> order(static_cast<size_t>(count));
  std::iota(order.begin(), order.end(), int64_t{0});
  for (size_t left = order.size(); left > 1; --left) std::swap(order[left - 1], order[below(left)]);
  return order;
}

at::Tensor RandomStream::uniform_tensor(at::IntArrayRef shape, double low, double high) {
  at::Tensor result = at::empty(shape, at::kFloat);
  float* values = result.mutable_data_ptr<float>();
  for (int64_t i = 0; i < result.numel(); ++i) values[i] = static_cast<float>(low + (high - low) * uniform());
  return result;
}

at::Tensor RandomStream::normal_tensor(at::IntArrayRef shape, double deviation) {
  at::Tensor result = at::empty(shape, at::kFloat);
  float* values = result.mutable_data_ptr<float>();
  for (int64_t i = 0; i < result.numel(); ++i) values[i] = static_cast<float>(deviation * normal());
  return result;
}

at::Tensor RandomStream::dropout_mask(at::IntArrayRef shape, double p) {
  QALORA_CHECK(p >= 0 && p <= 1, "the dropout probability is ", p);
  at::Tensor result = at::empty(shape, at::kFloat);
  float* values = result.mutable_data_ptr<float>();
  const double dropped_below = p * 0x1p32;
  const float kept = p < 1 ? static_cast<float>(1.0 / (1.0 - p)) : 0.0f;
  for (int64_t i = 0; i < result.numel(); ++i) values[i] = next_u32() < dropped_below ? 0.0f : kept;
  return result;
}

}  // namespace qalora::tensor
