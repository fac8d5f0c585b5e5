// The sums of each group of a row, for rows that no kernel here has made. Others take the sums while they make a row
// (row.h).
#include "kernels/cuda/row.h"

namespace qalora::kernels::cuda {

namespace {

// Block: a segment of a row. x: [rows, stride]
template <typename T, bool kAligned>
__global__ void __launch_bounds__(kSegmentThreads)
    pool_kernel(T* x, int64_t stride, int width, int segment_chunks, Pooling pooling) {
  constexpr int kSize = 16 / sizeof(T);
  const int64_t row = blockIdx.x;
  const int threads = static_cast<int>(blockDim.x), first = static_cast<int>(blockIdx.y) * segment_chunks;
  const int last = min(width / kSize, first + segment_chunks);
  T* const row_x = x + row * stride;
  const GroupSums<T> groups(pooling, row, row_x + width, dynamic_shared<float>(), first * kSize);
  for (int begin = first + warp_index() * kWarp; begin < last; begin += kSegmentKept * threads) {
    Chunk<T, kSize> loaded[kSegmentKept];
#pragma unroll
    for (int k = 0; k < kSegmentKept; ++k) {
      const int chunk = begin + lane_index() + k * threads;
      loaded[k].fill(0);
      if (chunk < last) loaded[k].template load<kAligned>(row_x + chunk * kSize);
    }
#pragma unroll
    for (int k = 0; k < kSegmentKept; ++k) {
      const int chunk = begin + lane_index() + k * threads;
      float values[kSize];
      loaded[k].unpack(values);
      groups.add(chunk * kSize, chunk < last, values);
    }
  }
  groups.finish(last * kSize);
}

}  // namespace

Status pool(void* x, int64_t stride, Type type, int64_t rows, int64_t width, const PoolOutput& pool, Stream stream) {
  const Status checked = check_rows(rows, width, stride, pool);
  if (checked != Status::kOk || rows == 0) return checked;
  const Pooling pooling = make_pooling(pool, width);
  if (pooling.group_size == 0) return Status::kOk;
  if (!given(bytes_of(type), {x}) || !optional(4, {pool.sums})) return Status::kBadArgument;
  const Segments cut = segments(rows, width, type, pooling);
  if (cut.per_row > kMaxGridY || cut.shape.shared_bytes > kMaxShared) return Status::kUnsupported;
  const bool aligned = aligned_to(16, {x}) && stride % vector_elements(type) == 0;
  return dispatch(type, aligned, [&](auto tag, auto whole) {
    using T = typename decltype(tag)::type;
    return launch(pool_kernel<T, decltype(whole)::value>, cut.shape, stream, static_cast<T*>(x), stride,
                  static_cast<int>(width), cut.chunks, pooling);
  });
}

}  // namespace qalora::kernels::cuda
