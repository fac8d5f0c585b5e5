// The kernels that work on packed weights, and the launches that they ask for (plain numbers, so that a host test can
// hold them against an architecture's limits). include/qalora/kernels/cuda.h says what each computes.
#pragma once

#include "kernels/cuda/dialect.h"

namespace qalora::kernels::cuda {

// A tile's words and a quad's floats are read 8 and 16 bytes at a time.
bool aligned(const void* pointer, int64_t bytes);
// The shape is one we support and the pointers are there and aligned.
Status check(const TiledView& weight);

Status repack(const PackedView& from, uint32_t* codes, float* scales, float* offsets, Stream stream);
LaunchShape repack_codes_shape(const TiledShape& shape);
LaunchShape repack_groups_shape(const TiledShape& shape);

Status fold(const TiledShape& shape, const float* offsets, const float* a, const float* b, int64_t rank, float scaling,
            float* folded, Stream stream);
LaunchShape fold_shape(const TiledShape& shape);

Status dequantize(const TiledView& weight, int64_t row_begin, int64_t row_end, Panel panel, Type type, void* out,
                  int64_t stride, Stream stream);
LaunchShape dequantize_shape(const TiledShape& shape, int64_t rows);

constexpr int kMatvecRows = 8;
Status matvec(const TiledView& weight, const void* x, int64_t x_stride, Type x_type, const float* sums, int64_t rows,
              void* y, int64_t y_stride, Type y_type, Stream stream);
LaunchShape matvec_shape(const TiledShape& shape, int64_t rows);

int64_t matmul_workspace_bytes(const TiledShape& shape, int64_t rows, int multiprocessors);
Status matmul(const TiledView& weight, const void* x, int64_t x_stride, Type x_type, const float* sums, int64_t rows,
              void* y, int64_t y_stride, Type y_type, void* workspace, int multiprocessors, Stream stream);
LaunchShape matmul_shape(const TiledShape& shape, int64_t rows, int multiprocessors);
// fours: a thread adds four neighbouring values.
LaunchShape add_parts_shape(int64_t out_features, int64_t rows, bool fours);

}  // namespace qalora::kernels::cuda
