// folded = offsets + scaling * (B . A), in fp32 and in lane order. A thread owns one group of a row tile's 16 rows: its
// column of A is read once for all of them, and B's 16 rows come from shared memory, the same word for every thread of
// a warp.
#include "kernels/cuda/linear.h"
#include "kernels/cuda/tile.h"

namespace qalora::kernels::cuda {

namespace {

constexpr int kThreads = 128;   // groups a block
constexpr int kRankPiece = 64;  // columns of B in shared memory at a time; a multiple of 4

struct Folding {
  Layout layout;
  const float* offsets;
  const float* a;
  const float* b;
  int64_t rank;
  float scaling;
  float* folded;  // may be `offsets`: a thread reads what it writes, before
};

// B's rows of this tile, columns [begin, begin + kRankPiece), zeros outside. rows: [kTileRows, kRankPiece]
__device__ void stage_rows(const Folding& work, int64_t row, int64_t begin, float* rows) {
  for (int i = static_cast<int>(threadIdx.x); i < kTileRows * kRankPiece; i += kThreads) {
    const int64_t from = row + i / kRankPiece, column = begin + i % kRankPiece;
    rows[i] = from < work.layout.out_features && column < work.rank ? work.b[from * work.rank + column] : 0.0f;
  }
}

__global__ void __launch_bounds__(kThreads) fold_kernel(Folding work) {
  float* rows = dynamic_shared<float>();
  const int64_t groups = work.layout.groups, quads = work.layout.quads;
  const int64_t row_tile = blockIdx.x, group = int64_t{blockIdx.y} * kThreads + threadIdx.x;
  float sums[kTileRows] = {};
  for (int64_t begin = 0; begin < work.rank; begin += kRankPiece) {
    __syncthreads();
    stage_rows(work, row_tile * kTileRows, begin, rows);
    __syncthreads();
    const int count = static_cast<int>(work.rank - begin < kRankPiece ? work.rank - begin : kRankPiece);
    for (int r = 0; r < count; r += 4) {
      float a[4];
      for (int i = 0; i < 4; ++i)
        a[i] = group < groups && r + i < count ? work.a[(begin + r + i) * groups + group] : 0.0f;
      for (int row = 0; row < kTileRows; ++row) {
        const float4 b = *reinterpret_cast<const float4*>(rows + row * kRankPiece + r);
        sums[row] = __fmaf_rn(b.x, a[0], sums[row]);
        sums[row] = __fmaf_rn(b.y, a[1], sums[row]);
        sums[row] = __fmaf_rn(b.z, a[2], sums[row]);
        sums[row] = __fmaf_rn(b.w, a[3], sums[row]);
      }
    }
  }
  if (group >= quads * kQuad) return;
  const int64_t quad = (row_tile * quads + group / kQuad) * kQuadFloats;
  for (int row = 0; row < 8; ++row) {
    const int64_t place = quad + (4 * row + group % kQuad) * 2;
    const float2 offset = *reinterpret_cast<const float2*>(work.offsets + place);
    const float2 folded = {__fmaf_rn(work.scaling, sums[row], offset.x),
                           __fmaf_rn(work.scaling, sums[row + 8], offset.y)};
    *reinterpret_cast<float2*>(work.folded + place) = folded;
  }
}

}  // namespace

LaunchShape fold_shape(const TiledShape& shape) {
  const auto columns = static_cast<unsigned>(tiles_over(shape.quads() * kQuad, kThreads));
  return {dim3(static_cast<unsigned>(shape.row_tiles()), columns), dim3(kThreads), kTileRows * kRankPiece * 4};
}

Status fold(const TiledShape& shape, const float* offsets, const float* a, const float* b, int64_t rank, float scaling,
            float* folded, Stream stream) {
  if (!supports(shape)) return Status::kUnsupported;
  if (rank < 0 || !aligned(offsets, 8) || !aligned(folded, 8) || (rank > 0 && (a == nullptr || b == nullptr)))
    return Status::kBadArgument;
  return launch(fold_kernel, fold_shape(shape), stream, Folding{Layout(shape), offsets, a, b, rank, scaling, folded});
}

}  // namespace qalora::kernels::cuda
