// Written for being obviously right: bit by bit, product by product, in double precision. Shares no code with the fast
// kernels.
#include "qalora/kernels/reference.h"

namespace qalora::kernels::reference {

namespace {

double weight(const PackedView& view, int64_t row, int64_t column) {
  const auto* bytes = reinterpret_cast<const unsigned char*>(view.codes) + row * view.words() * 4;
  unsigned code = 0;
  for (int bit = 0; bit < view.bits; ++bit) {
    const int64_t position = column * view.bits + bit;
    code |= (bytes[position / 8] >> (position % 8) & 1u) << bit;
  }
  const int64_t group = row * view.groups() + column / view.group_size;
  return static_cast<double>(view.scales[group]) * code + static_cast<double>(view.offsets[group]);
}

}  // namespace

void dequantize(const PackedView& view, double* out) {
  for (int64_t row = 0; row < view.out_features; ++row) {
    for (int64_t column = 0; column < view.in_features; ++column) *out++ = weight(view, row, column);
  }
}

void matmul(const PackedView& view, const double* x, int64_t tokens, double* y) {
  for (int64_t token = 0; token < tokens; ++token, x += view.in_features) {
    for (int64_t row = 0; row < view.out_features; ++row) {
      double sum = 0;
      for (int64_t column = 0; column < view.in_features; ++column) sum += x[column] * weight(view, row, column);
      *y++ = sum;
    }
  }
}

void matmul_backward(const PackedView& view, const double* dy, int64_t tokens, double* dx) {
  for (int64_t token = 0; token < tokens; ++token, dy += view.out_features) {
    for (int64_t column = 0; column < view.in_features; ++column) {
      double sum = 0;
      for (int64_t row = 0; row < view.out_features; ++row) sum += dy[row] * weight(view, row, column);
      *dx++ = sum;
    }
  }
}

void pool(const double* x, int64_t tokens, int64_t in_features, int64_t group_size, Pooling pooling, double* out) {
  const int64_t groups = groups_per_row(in_features, group_size);
  for (int64_t token = 0; token < tokens; ++token) {
    for (int64_t group = 0; group < groups; ++group) {
      double sum = 0;
      int64_t count = 0;
      for (int64_t k = group * group_size; k < in_features && k < (group + 1) * group_size; ++k, ++count) {
        sum += x[token * in_features + k];
      }
      out[token * groups + group] = pooling == Pooling::kMean ? sum / static_cast<double>(count) : sum;
    }
  }
}

}  // namespace qalora::kernels::reference
