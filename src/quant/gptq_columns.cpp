#include "gptq_columns.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <numeric>

#include "group_grid.h"
#include "qalora/core/error.h"

namespace qalora::quant {
namespace {

GridRule rule_of(const GptqOptions& options) { return {options.bits, options.integer_zeros, options.search}; }

// Columns [begin, end), in the order of rounding, that are worked on together.
struct Block {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
};

// A block holds whole groups or a part of one, so that a group's scale never needs columns that still wait for a
// block's feedback.
std::vector<Block> blocks_of(const std::vector<int64_t>& order, int64_t group_size, int64_t block_columns,
                             bool static_groups) {
  const auto count = static_cast<int64_t>(order.size());
  std::vector<Block> blocks;
  const auto group = [&](int64_t place) { return order[static_cast<size_t>(place)] / group_size; };
  for (int64_t begin = 0; begin < count;) {
    int64_t end = std::min(begin + block_columns, count);
    if (!static_groups) {
      int64_t last = end;  // the last place up to `end` where a group begins
      while (last > begin && last < count && group(last) == group(last - 1)) --last;
      if (last > begin) {
        end = last;
      } else {  // a group longer than a block: a part of it, no further than its end
        end = begin + 1;
        while (end < count && end - begin < block_columns && group(end) == group(begin)) ++end;
      }
    }
    blocks.push_back({begin, end});
    begin = end;
  }
  return blocks;
}

// What one block of columns needs, all on the CPU.
struct BlockWork {
  Block block;
  const float* factor;      // [size, size], U's part
  const int64_t* order;     // [size]
  const float* importance;  // [in_features]
  float* weight;  // [rows, size]; becomes the errors that go on to later columns, each divided by U's diagonal
  bool static_groups;
  GridRule rule;
};

// weights of a group in the order of rounding -> its grid
Grid grid_of(const BlockWork& work, const float* values, int64_t first, int64_t count, std::vector<float>& costs) {
  costs.resize(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) costs[static_cast<size_t>(i)] = work.importance[work.order[first + i]];
  return fit_grid(work.rule, values, costs.data(), count);
}

void round_row(const BlockWork& work, int64_t row, Rounded& rounded, std::vector<float>& costs) {
  const int64_t size = work.block.size(), columns = rounded.columns();
  float* values = work.weight + row * size;
  uint8_t* codes = rounded.codes.data_ptr<uint8_t>() + row * columns;
  float* scales = rounded.scales.data_ptr<float>() + row * rounded.groups();
  float* offsets = rounded.offsets.data_ptr<float>() + row * rounded.groups();
  int64_t current = -1;
  Grid grid;
  float inverse = 0;
  for (int64_t i = 0; i < size; ++i) {
    const int64_t column = work.order[i], group = column / rounded.group_size;
    if (group != current) {
      current = group;
      if (!work.static_groups) {
        int64_t count = 1;
        while (i + count < size && work.order[i + count] / rounded.group_size == group) ++count;
        const bool whole = count == std::min(rounded.group_size, columns - group * rounded.group_size);
        if (whole) {  // else it is longer than the block, and fit_long_group did it
          const Grid fitted = grid_of(work, values + i, i, count, costs);
          scales[group] = fitted.scale, offsets[group] = fitted.offset;
        }
      }
      grid = {scales[group], offsets[group]};
      inverse = inverse_scale(grid.scale);
    }
    const int code = nearest_code(values[i], grid.offset, inverse, work.rule.top());
    codes[column] = static_cast<uint8_t>(code);
    const float* factor = work.factor + i * size;
    const float error = (values[i] - value_of(grid, code)) / factor[i];
    for (int64_t j = i + 1; j < size; ++j) values[j] -= error * factor[j];
    values[i] = error;
  }
}

// The grids of a group that is longer than a block, at its first column. weight: [rows, count] f32 CPU
void fit_long_group(const at::Tensor& weight, const int64_t* order, const float* importance, const GridRule& rule,
                    Rounded& rounded) {
  const int64_t count = weight.size(1), group = order[0] / rounded.group_size;
  std::vector<float> costs(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) costs[static_cast<size_t>(i)] = importance[order[i]];
  const float* values = weight.const_data_ptr<float>();
  at::parallel_for(0, weight.size(0), 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const Grid grid = fit_grid(rule, values + row * count, costs.data(), count);
      rounded.scales.data_ptr<float>()[row * rounded.groups() + group] = grid.scale;
      rounded.offsets.data_ptr<float>()[row * rounded.groups() + group] = grid.offset;
    }
  });
}

// lower: [n, n] f32 lower triangular -> its inverse, by halves: a third of the work of solving against the identity
at::Tensor inverse_lower(const at::Tensor& lower) {
  const int64_t size = lower.size(0), half = size / 2;
  constexpr int64_t kSmall = 256;
  if (size <= kSmall) return at::linalg_solve_triangular(lower, at::eye(size, lower.options()), /*upper=*/false);
  const at::Tensor first = inverse_lower(lower.slice(0, 0, half).slice(1, 0, half));
  const at::Tensor second = inverse_lower(lower.slice(0, half).slice(1, half));
  at::Tensor inverse = at::zeros_like(lower);
  inverse.slice(0, 0, half).slice(1, 0, half).copy_(first);
  inverse.slice(0, half).slice(1, half).copy_(second);
  inverse.slice(0, half).slice(1, 0, half).copy_(second.mm(lower.slice(0, half).slice(1, 0, half)).mm(first).neg_());
  return inverse;
}

}  // namespace

at::Tensor Rounded::dense() const {
  const at::Tensor group_of = at::arange(columns(), at::kLong).div_(group_size, "floor");
  return codes.to(at::kFloat).mul_(scales.index_select(1, group_of)).add_(offsets.index_select(1, group_of));
}

std::vector<int64_t> column_order(const at::Tensor& diagonal, int64_t group_size, const GptqOptions& options) {
  const int64_t count = diagonal.numel();
  std::vector<int64_t> order(static_cast<size_t>(count));
  std::iota(order.begin(), order.end(), int64_t{0});
  if (!options.act_order) return order;
  const float* values = diagonal.const_data_ptr<float>();
  std::vector<float> largest(static_cast<size_t>(kernels::groups_per_row(count, group_size)), 0.0F);
  for (int64_t i = 0; i < count; ++i) largest[i / group_size] = std::max(largest[i / group_size], values[i]);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    const int64_t group_a = a / group_size, group_b = b / group_size;
    if (options.static_groups || group_a == group_b) return values[a] > values[b];
    return largest[group_a] != largest[group_b] ? largest[group_a] > largest[group_b] : group_a < group_b;
  });
  return order;
}

InverseFactor inverse_factor(const std::string& name, const at::Tensor& hessian, const std::vector<int64_t>& order,
                             double damping) {
  // With rows and columns reversed H' = L L^T, and U = reversed L^-1: one factorisation and one inverse of a triangle,
  // where inverting H and factoring the inverse would take two and could fail twice.
  constexpr double kLargest = 100, kFirst = 1e-4;
  const double mean = hessian.diagonal().mean(at::kDouble).item<double>();
  const at::Tensor places =
      at::tensor(std::vector<int64_t>(order.rbegin(), order.rend()), at::kLong).to(hessian.device());
  for (double share = damping; share <= kLargest; share = std::max(share * 10, kFirst)) {
    at::Tensor reversed = hessian.index_select(0, places).index_select(1, places);
    reversed.diagonal().add_(share * mean);
    auto [lower, info] = at::linalg_cholesky_ex(reversed);
    reversed.reset();
    if (info.item<int32_t>() != 0) continue;
    const at::Tensor inverse = inverse_lower(lower);
    lower.reset();
    if (!at::isfinite(inverse.diagonal()).all().item<bool>()) continue;
    return {at::flip(inverse, {0, 1}), share};
  }
  throw DataError(message(name, ": H = 2/n X^T X of the layer's inputs is not positive semidefinite, not even with ",
                          kLargest, " times its mean diagonal (", mean, ") added; the activations are damaged"));
}

Rounded static_grids(const at::Tensor& weight, const at::Tensor& importance, int64_t group_size,
                     const GptqOptions& options) {
  const int64_t rows = weight.size(0), columns = weight.size(1), groups = kernels::groups_per_row(columns, group_size);
  Rounded rounded{at::zeros({rows, columns}, at::kByte), at::zeros({rows, groups}, at::kFloat),
                  at::zeros({rows, groups}, at::kFloat), group_size, options.bits};
  if (!options.static_groups) return rounded;
  const float *values = weight.const_data_ptr<float>(), *costs = importance.const_data_ptr<float>();
  float *scales = rounded.scales.data_ptr<float>(), *offsets = rounded.offsets.data_ptr<float>();
  at::parallel_for(0, rows, 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t group = 0; group < groups; ++group) {
        const int64_t first = group * group_size, count = std::min(group_size, columns - first);
        const Grid grid = fit_grid(rule_of(options), values + row * columns + first, costs + first, count);
        scales[row * groups + group] = grid.scale, offsets[row * groups + group] = grid.offset;
      }
    }
  });
  return rounded;
}

void round_columns(at::Tensor weight, const at::Tensor& factor, const std::vector<int64_t>& order,
                   const at::Tensor& importance, const GptqOptions& options, Rounded& rounded) {
  const int64_t columns = rounded.columns();
  const float* costs = importance.const_data_ptr<float>();
  for (const Block& block : blocks_of(order, rounded.group_size, options.block_columns, options.static_groups)) {
    const int64_t* places = order.data() + block.begin;
    const int64_t group = places[0] / rounded.group_size;
    const int64_t whole = std::min(rounded.group_size, columns - group * rounded.group_size);
    const bool first_of_group = block.begin == 0 || places[-1] / rounded.group_size != group;
    if (!options.static_groups && first_of_group && whole > block.size()) {
      fit_long_group(weight.narrow(1, block.begin, whole).to(at::kCPU).contiguous(), places, costs, rule_of(options),
                     rounded);
    }
    at::Tensor part = weight.narrow(1, block.begin, block.size()).to(at::kCPU).contiguous();  // [rows, size]
    if (part.is_alias_of(weight)) part = part.clone();
    const at::Tensor rows_of_factor = factor.narrow(0, block.begin, block.size());
    const at::Tensor corner = rows_of_factor.narrow(1, block.begin, block.size()).to(at::kCPU).contiguous();
    const BlockWork work{block,           corner.const_data_ptr<float>(), places,
                         costs,           part.data_ptr<float>(),         options.static_groups,
                         rule_of(options)};
    at::parallel_for(0, rounded.rows(), 1, [&](int64_t begin, int64_t end) {
      std::vector<float> scratch;
      for (int64_t row = begin; row < end; ++row) round_row(work, row, rounded, scratch);
    });
    if (block.end == columns) break;
    const int64_t rest = columns - block.end;
    weight.narrow(1, block.end, rest)
        .addmm_(part.to(weight.device()), rows_of_factor.narrow(1, block.end, rest), 1, -1);
  }
}

}  // namespace qalora::quant
