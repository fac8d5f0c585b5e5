#include "rounding.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <mutex>

#include "qalora/core/checked.h"

namespace qalora::exporting {
namespace {

// A block of so many numbers in fp32, what it was rounded to and what that reads as again fit into a core's second cache.
constexpr int64_t kBlock = 65536;

struct Loss {
  double largest_error = 0, largest_value = 0;
  int64_t subnormal = 0, flushed = 0, overflow = 0;

  void add(const Loss& other) {
    if (!(other.largest_error <= largest_error)) largest_error = other.largest_error;  // keeps NaN
    largest_value = std::max(largest_value, other.largest_value);
    subnormal += other.subnormal;
    flushed += other.flushed;
    overflow += other.overflow;
  }
};

float smallest_normal(at::ScalarType type) { return type == at::kHalf ? std::ldexp(1.0f, -14) : std::numeric_limits<float>::min(); }

// One group of numbers before and after. Without branches: a compiler makes vectors of it.
Loss loss_of(const float* before, const float* after, int64_t count, float normal) {
  float error = 0, size = 0;
  int32_t subnormal = 0, flushed = 0, overflow = 0;
  for (int64_t i = 0; i < count; ++i) {
    const float difference = std::abs(before[i] - after[i]), value = std::abs(before[i]), now = std::abs(after[i]);
    error = difference > error ? difference : error;
    size = value > size ? value : size;
    flushed += (value != 0.0f) & (now == 0.0f);
    subnormal += (now != 0.0f) & (now < normal) & (difference != 0.0f);
    overflow += !(now <= std::numeric_limits<float>::max());
  }
  const bool lost = overflow > 0;
  return {lost ? std::numeric_limits<double>::infinity() : error, size, subnormal, flushed, overflow};
}

// The losses of rows [first, first + count) in steps of their groups.
Loss loss_of_rows(const at::Tensor& before, const at::Tensor& after, int64_t first, const RoundOptions& options, float normal) {
  Loss loss;
  const int64_t columns = before.size(1), length = options.scales == nullptr ? columns : options.group_size, groups = ceil_div(columns, length);
  const float *a = before.const_data_ptr<float>(), *b = after.const_data_ptr<float>();
  for (int64_t row = 0; row < before.size(0); ++row) {
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t at = row * columns + g * length;
      Loss group = loss_of(a + at, b + at, std::min(length, columns - g * length), normal);
      if (options.scales != nullptr && group.largest_error != 0) {
        const double scale = std::abs(options.scales[(first + row) * groups + g]);
        // A group without a step is a constant: its error counts in its own size.
        group.largest_error /= scale > 0 ? scale : group.largest_value;
      }
      loss.add(group);
    }
  }
  return loss;
}

}  // namespace

at::Tensor round_rows(const RowSource& source, int64_t rows, int64_t columns, at::ScalarType type, const RoundOptions& options, TensorReport& report) {
  const at::Tensor result = at::empty({rows, columns}, at::dtype(type));
  const int64_t block = std::max<int64_t>(1, kBlock / std::max<int64_t>(1, columns));
  Loss total;
  std::mutex mutex;
  at::parallel_for(0, ceil_div(rows, block), 1, [&](int64_t begin, int64_t end) {
    Loss here;
    const at::Tensor exact = at::empty({block, columns}, at::kFloat), read = at::empty_like(exact);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i * block, count = std::min(block, rows - first);
      const at::Tensor before = exact.narrow(0, 0, count), after = read.narrow(0, 0, count), written = result.narrow(0, first, count);
      source(first, first + count, before.data_ptr<float>());
      written.copy_(before);
      after.copy_(written);
      here.add(loss_of_rows(before, after, first, options, smallest_normal(type)));
    }
    const std::lock_guard lock(mutex);
    total.add(here);
  });
  const double error = options.scales == nullptr && total.largest_error != 0 ? total.largest_error / total.largest_value : total.largest_error;
  if (!(error <= report.largest_error)) report.largest_error = error;
  report.subnormal += total.subnormal;
  report.flushed += total.flushed;
  report.overflow += total.overflow;
  return result;
}

at::Tensor round_tensor(const at::Tensor& stored, at::ScalarType type, TensorReport& report) {
  // Nothing to round. A value that is not finite goes the long way, which counts it.
  if (type == at::kFloat || stored.scalar_type() == type) {
    const at::Tensor same = stored.to(type).contiguous();
    if (at::isfinite(same).all().item<bool>()) return same;
  }
  const int64_t rows = stored.dim() > 1 ? stored.size(0) : 1, columns = stored.numel() / std::max<int64_t>(1, rows);
  const at::Tensor matrix = stored.view({rows, columns});
  const RowSource copy = [&](int64_t begin, int64_t end, float* out) {
    at::from_blob(out, {end - begin, columns}, at::kFloat).copy_(matrix.narrow(0, begin, end - begin));
  };
  return round_rows(copy, rows, columns, type, {}, report).view(stored.sizes());
}

}  // namespace qalora::exporting
