#include "qalora/export/report.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <mutex>

#include "differences.h"
#include "qalora/core/error.h"
#include "rounding.h"

namespace qalora::exporting {
namespace {

// The largest of rows' values, NaN above all; rows are shared out to all threads.
template <typename Row>
double largest_of_rows(int64_t rows, const Row& row) {
  double largest = 0;
  std::mutex mutex;
  at::parallel_for(0, rows, 16, [&](int64_t begin, int64_t end) {
    double here = 0;
    row(begin, end, here);
    const std::lock_guard lock(mutex);
    raise(largest, here);
  });
  return largest;
}

bool same(const at::Tensor& a, const at::Tensor& b) { return a.is_same(b) || at::equal(a, b); }

}  // namespace

void count_rounding(const at::Tensor& exact, const at::Tensor& rounded, TensorReport& report) {
  const at::ScalarType type = rounded.scalar_type();
  if (type == at::kFloat) return;
  const at::Tensor flat = exact.flatten(), after = rounded.flatten().to(at::kFloat);
  const Lost lost =
      count_lost(flat.const_data_ptr<float>(), after.const_data_ptr<float>(), flat.numel(), smallest_normal(type));
  report.flushed += lost.flushed;
  report.subnormal += lost.subnormal;
  report.overflow += lost.overflow;
}

void compare_packed(const quant::PackedWeight& exact, const quant::PackedWeight& written, TensorReport& report) {
  QALORA_CHECK(exact.in_features == written.in_features && exact.group_size == written.group_size &&
                   exact.out_features() == written.out_features(),
               "comparing weights of different shapes: ", report.tensor);
  if (same(exact.scales, written.scales) && same(exact.offsets, written.offsets) && exact.bits == written.bits &&
      same(exact.codes, written.codes))
    return;
  const kernels::PackedView from = exact.view(), to = written.view();
  const int64_t columns = exact.in_features, groups = exact.groups();
  const double largest = largest_of_rows(exact.out_features(), [&](int64_t begin, int64_t end, double& here) {
    std::vector<float> a(static_cast<size_t>(columns)), b(a.size());
    for (int64_t row = begin; row < end; ++row) {
      const bool ok = kernels::dequantize_rows(from, row, row + 1, a.data()) == kernels::Status::kOk &&
                      kernels::dequantize_rows(to, row, row + 1, b.data()) == kernels::Status::kOk;
      QALORA_CHECK(ok, "dequantising ", report.tensor);
      for (int64_t g = 0; g < groups; ++g) {
        const int64_t first = g * exact.group_size, count = std::min(exact.group_size, columns - first);
        const double difference = largest_difference(a.data() + first, b.data() + first, count);
        // A group without a step is a constant: its error counts in its own size.
        const double scale = std::abs(from.scales[row * groups + g]),
                     size = scale > 0 ? scale : std::abs(from.offsets[row * groups + g]);
        raise(here, difference == 0 ? 0 : difference / size);
      }
    }
  });
  raise(report.largest_error, largest);
}

void compare_dense(const at::Tensor& exact, const at::Tensor& written, TensorReport& report) {
  QALORA_CHECK(exact.sizes() == written.sizes(), "comparing weights of different shapes: ", report.tensor);
  const int64_t rows = exact.dim() > 1 ? exact.size(0) : 1, columns = exact.numel() / std::max<int64_t>(1, rows);
  const at::Tensor a = exact.contiguous().view({rows, columns}), b = written.contiguous().view({rows, columns});
  const double scale = exact.numel() == 0 ? 0 : exact.abs().max().item<double>();
  const double largest = largest_of_rows(rows, [&](int64_t begin, int64_t end, double& here) {
    for (int64_t row = begin; row < end; ++row) {
      const at::Tensor read = b[row].to(at::kFloat);
      raise(here, largest_difference(a.const_data_ptr<float>() + row * columns, read.const_data_ptr<float>(), columns));
    }
  });
  raise(report.largest_error, largest == 0 ? 0 : largest / scale);
}

ReportTotals totals(const std::vector<TensorReport>& reports) {
  ReportTotals sum;
  for (const TensorReport& report : reports) {
    raise(sum.largest_error, report.largest_error);
    sum.subnormal += report.subnormal;
    sum.flushed += report.flushed;
    sum.overflow += report.overflow;
    sum.lossless += report.lossless() ? 1 : 0;
  }
  return sum;
}

std::vector<TensorReport> worst(const std::vector<TensorReport>& reports, size_t count) {
  std::vector<TensorReport> sorted = reports;
  const auto size = [](const TensorReport& report) {  // NaN is the worst there is
    return std::isnan(report.largest_error) ? std::numeric_limits<double>::infinity() : report.largest_error;
  };
  std::stable_sort(sorted.begin(), sorted.end(), [&](const auto& a, const auto& b) { return size(a) > size(b); });
  sorted.resize(std::min(sorted.size(), count));
  return sorted;
}

}  // namespace qalora::exporting
