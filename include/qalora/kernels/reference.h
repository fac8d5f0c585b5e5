// Plain loops in double precision: the definition that every fast kernel is tested against.
#pragma once

#include "qalora/kernels/packed.h"

namespace qalora::kernels::reference {

// out: [out_features, in_features] f64
void dequantize(const PackedView& view, double* out);
// y = x . W^T;  x: [tokens, in_features] f64 -> y: [tokens, out_features] f64
void matmul(const PackedView& view, const double* x, int64_t tokens, double* y);
// dx = dy . W;  dy: [tokens, out_features] f64 -> dx: [tokens, in_features] f64
void matmul_backward(const PackedView& view, const double* dy, int64_t tokens, double* dx);
// Sums of each group of inputs, or their means (divided by the group's own length, also where the last one is shorter).
// x: [tokens, in_features] f64 -> out: [tokens, groups] f64
enum class Pooling { kSum, kMean };
void pool(const double* x, int64_t tokens, int64_t in_features, int64_t group_size, Pooling pooling, double* out);

}  // namespace qalora::kernels::reference
