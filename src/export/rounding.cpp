#include "rounding.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <mutex>

#include "differences.h"
#include "qalora/core/checked.h"

namespace qalora::exporting {
namespace {

// A block of so many numbers in fp32, what it was rounded to and what that reads as again fit into a core's second
// cache.
constexpr int64_t kBlock = 65536;

struct Loss {
  double largest_error = 0, largest_value = 0;
  Lost lost;

  void add(const Loss& other) {
    raise(largest_error, other.largest_error);
    largest_value = std::max(largest_value, other.largest_value);
    lost.subnormal += other.lost.subnormal;
    lost.flushed += other.lost.flushed;
    lost.overflow += other.lost.overflow;
  }
};

// In steps of the grid: one of `length` numbers, the last of a row maybe shorter. before, after: [rows, columns];
// scales: [rows, groups]
double largest_error(const at::Tensor& before, const at::Tensor& after, const float* scales, int64_t length) {
  const int64_t columns = before.size(1), groups = ceil_div(columns, length);
  const float *a = before.const_data_ptr<float>(), *b = after.const_data_ptr<float>();
  double largest = 0;
  for (int64_t row = 0; row < before.size(0); ++row, a += columns, b += columns, scales += groups) {
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t at = g * length, count = std::min(length, columns - at);
      const double error = largest_difference(a + at, b + at, count);
      if (error == 0) continue;
      // A group without a step is a constant: its error counts in its own size.
      largest = std::max(largest, error / (scales[g] != 0 ? std::abs(scales[g]) : largest_magnitude(a + at, count)));
    }
  }
  return largest;
}

// Of rows [first, ..).
Loss loss_of_rows(const at::Tensor& before, const at::Tensor& after, int64_t first, const RoundOptions& options,
                  float normal) {
  const int64_t columns = before.size(1), count = before.numel();
  const float *a = before.const_data_ptr<float>(), *b = after.const_data_ptr<float>();
  Loss loss{0, 0, count_lost(a, b, count, normal)};
  if (loss.lost.overflow > 0) {
    loss.largest_error = std::numeric_limits<double>::infinity();
  } else if (options.scales == nullptr) {
    loss.largest_error = largest_difference(a, b, count);
    loss.largest_value = largest_magnitude(a, count);
  } else {
    loss.largest_error = largest_error(before, after, options.scales + first * ceil_div(columns, options.group_size),
                                       options.group_size);
  }
  return loss;
}

// Whether all of the magnitudes lie below that of inf; `Bits` are the values' own. Any alignment.
template <typename Bits>
bool below_infinity(const std::byte* values, int64_t count, Bits infinity) {
  constexpr int64_t kPiece = 4096;
  std::array<Bits, kPiece> piece;
  for (int64_t i = 0; i < count; i += kPiece) {
    const int64_t here = std::min(kPiece, count - i);
    std::memcpy(piece.data(), values + i * static_cast<int64_t>(sizeof(Bits)),
                static_cast<size_t>(here) * sizeof(Bits));
    Bits found = 0;
    for (int64_t j = 0; j < here; ++j)
      found |= static_cast<Bits>((piece[static_cast<size_t>(j)] & infinity) == infinity);
    if (found != 0) return false;
  }
  return true;
}

}  // namespace

float smallest_normal(at::ScalarType type) {
  return type == at::kHalf ? std::ldexp(1.0f, -14) : std::numeric_limits<float>::min();
}

at::Tensor round_rows(const RowSource& source, int64_t rows, int64_t columns, at::ScalarType type,
                      const RoundOptions& options, TensorReport& report) {
  const at::Tensor result = at::empty({rows, columns}, at::dtype(type));
  const int64_t block = std::max<int64_t>(1, kBlock / std::max<int64_t>(1, columns));
  Loss total;
  std::mutex mutex;
  at::parallel_for(0, ceil_div(rows, block), 1, [&](int64_t begin, int64_t end) {
    Loss here;
    const at::Tensor exact = at::empty({block, columns}, at::kFloat), read = at::empty_like(exact);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i * block, count = std::min(block, rows - first);
      const at::Tensor before = exact.narrow(0, 0, count), after = read.narrow(0, 0, count),
                       written = result.narrow(0, first, count);
      source(first, first + count, before.data_ptr<float>());
      written.copy_(before);
      after.copy_(written);
      here.add(loss_of_rows(before, after, first, options, smallest_normal(type)));
    }
    const std::lock_guard lock(mutex);
    total.add(here);
  });
  const double error = options.scales == nullptr && total.largest_error != 0 ? total.largest_error / total.largest_value
                                                                             : total.largest_error;
  if (!(error <= report.largest_error)) report.largest_error = error;
  report.subnormal += total.lost.subnormal;
  report.flushed += total.lost.flushed;
  report.overflow += total.lost.overflow;
  return result;
}

bool all_finite(std::span<const std::byte> values, at::ScalarType type) {
  const int64_t size = static_cast<int64_t>(c10::elementSize(type)), count = static_cast<int64_t>(values.size()) / size;
  std::atomic<bool> finite = true;
  at::parallel_for(0, count, int64_t{1} << 20, [&](int64_t begin, int64_t end) {
    const std::byte* here = values.data() + begin * size;
    const bool good = type == at::kFloat  ? below_infinity<uint32_t>(here, end - begin, 0x7f800000)
                      : type == at::kHalf ? below_infinity<uint16_t>(here, end - begin, 0x7c00)
                                          : below_infinity<uint16_t>(here, end - begin, 0x7f80);
    if (!good) finite = false;
  });
  return finite;
}

at::Tensor round_tensor(const at::Tensor& stored, at::ScalarType type, TensorReport& report) {
  const int64_t rows = stored.dim() > 1 ? stored.size(0) : 1, columns = stored.numel() / std::max<int64_t>(1, rows);
  const at::Tensor matrix = stored.view({rows, columns});
  const RowSource copy = [&](int64_t begin, int64_t end, float* out) {
    at::from_blob(out, {end - begin, columns}, at::kFloat).copy_(matrix.narrow(0, begin, end - begin));
  };
  return round_rows(copy, rows, columns, type, {}, report).view(stored.sizes());
}

}  // namespace qalora::exporting
