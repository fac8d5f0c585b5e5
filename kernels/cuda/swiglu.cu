// silu(gate) * up and its gradient, with silu(g) = g / (1 + exp(-g)): all in fp32, rounded once.
#include "kernels/cuda/row.h"

namespace qalora::kernels::cuda {

namespace {

// Where exp(-g) overflows the sigmoid is 0, and g * 0 is what silu tends to.
template <typename T>
__device__ __forceinline__ float sigmoid(float g) {
  const float denominator = 1.0f + exponential<T>(-g);
  if constexpr (std::is_same_v<T, float>) return 1.0f / denominator;
  return reciprocal_approx(denominator);
}

// Block: a segment of a row. gate, up: [rows, width], out: [rows, out_stride]
template <typename T, bool kAligned>
__global__ void __launch_bounds__(kSegmentThreads)
    swiglu_kernel(const T* __restrict__ gate, const T* __restrict__ up, int width, int segment_chunks,
                  T* __restrict__ out, int64_t out_stride, Pooling pooling) {
  constexpr int kSize = 16 / sizeof(T);
  const int64_t row = blockIdx.x;
  const int threads = static_cast<int>(blockDim.x), first = static_cast<int>(blockIdx.y) * segment_chunks;
  const int last = min(width / kSize, first + segment_chunks);
  const T* const row_gate = gate + row * width;
  const T* const row_up = up + row * width;
  T* const row_out = out + row * out_stride;
  const GroupSums<T> groups(pooling, row, row_out + width, dynamic_shared<float>(), first * kSize);
  for (int begin = first + warp_index() * kWarp; begin < last; begin += kSegmentKept * threads) {
    Chunk<T, kSize> packed[kSegmentKept], packed_up[kSegmentKept];
#pragma unroll
    for (int k = 0; k < kSegmentKept; ++k) {
      const int chunk = begin + lane_index() + k * threads;
      packed[k].fill(0), packed_up[k].fill(0);
      if (chunk < last) {
        packed[k].template load<kAligned>(row_gate + chunk * kSize);
        packed_up[k].template load<kAligned>(row_up + chunk * kSize);
      }
    }
#pragma unroll
    for (int k = 0; k < kSegmentKept; ++k) {
      const int chunk = begin + lane_index() + k * threads;
      float values[kSize], u[kSize];
      packed[k].unpack(values);
      packed_up[k].unpack(u);
#pragma unroll
      for (int i = 0; i < kSize; ++i) values[i] = values[i] * sigmoid<T>(values[i]) * u[i];
      packed[k].pack(values);
      if (chunk < last) packed[k].template store<kAligned>(row_out + chunk * kSize);
      packed[k].unpack(values);  // the sums are those of the outputs as they were written
      groups.add(chunk * kSize, chunk < last, values);
    }
  }
  groups.finish(last * kSize);
}

// Thread: a chunk. No __restrict__: dgate and dup may be the memory of gate and up (a thread has read before it
// writes).
template <typename T, bool kAligned>
__global__ void __launch_bounds__(kSegmentThreads)
    swiglu_backward_kernel(const T* dout, const T* gate, const T* up, int64_t chunks, T* dgate, T* dup) {
  constexpr int kSize = 16 / sizeof(T);
  const int64_t chunk = int64_t{blockIdx.x} * kSegmentThreads + threadIdx.x;
  if (chunk >= chunks) return;
  Chunk<T, kSize> packed_d, packed_gate, packed_up;
  packed_d.template load<kAligned>(dout + chunk * kSize);
  packed_gate.template load<kAligned>(gate + chunk * kSize);
  packed_up.template load<kAligned>(up + chunk * kSize);
  float d[kSize], g[kSize], u[kSize];
  packed_d.unpack(d);
  packed_gate.unpack(g);
  packed_up.unpack(u);
#pragma unroll
  for (int i = 0; i < kSize; ++i) {
    // silu' = s (1 + g (1 - s)) with s the sigmoid
    const float s = sigmoid<T>(g[i]), silu = g[i] * s;
    u[i] = d[i] * u[i] * (s + silu * (1.0f - s));
    d[i] = d[i] * silu;
  }
  packed_gate.pack(u);
  packed_up.pack(d);
  packed_gate.template store<kAligned>(dgate + chunk * kSize);
  packed_up.template store<kAligned>(dup + chunk * kSize);
}

}  // namespace

Status swiglu(const void* gate, const void* up, Type type, int64_t rows, int64_t width, void* out, int64_t out_stride,
              const PoolOutput& pool, Stream stream) {
  const Status checked = check_rows(rows, width, out_stride, pool);
  if (checked != Status::kOk || rows == 0) return checked;
  if (!given(bytes_of(type), {gate, up, out}) || !optional(4, {pool.sums})) return Status::kBadArgument;
  const Pooling pooling = make_pooling(pool, width);
  const Segments cut = segments(rows, width, type, pooling);
  if (cut.per_row > kMaxGridY || cut.shape.shared_bytes > kMaxShared) return Status::kUnsupported;
  const bool aligned = aligned_to(16, {gate, up, out}) && out_stride % vector_elements(type) == 0;
  return dispatch(type, aligned, [&](auto tag, auto whole) {
    using T = typename decltype(tag)::type;
    return launch(swiglu_kernel<T, decltype(whole)::value>, cut.shape, stream, static_cast<const T*>(gate),
                  static_cast<const T*>(up), static_cast<int>(width), cut.chunks, static_cast<T*>(out), out_stride,
                  pooling);
  });
}

Status swiglu_backward(const void* dout, const void* gate, const void* up, Type type, int64_t rows, int64_t width,
                       void* dgate, void* dup, Stream stream) {
  const Status checked = check_rows(rows, width, width, PoolOutput());
  if (checked != Status::kOk || rows == 0) return checked;
  if (!given(bytes_of(type), {dout, gate, up, dgate, dup})) return Status::kBadArgument;
  const int64_t chunks = rows * width / vector_elements(type);
  if (tiles_over(chunks, kSegmentThreads) > kMaxGrid) return Status::kUnsupported;
  return dispatch(type, aligned_to(16, {dout, gate, up, dgate, dup}), [&](auto tag, auto whole) {
    using T = typename decltype(tag)::type;
    return launch(swiglu_backward_kernel<T, decltype(whole)::value>, swiglu_backward_shape(rows, width, type), stream,
                  static_cast<const T*>(dout), static_cast<const T*>(gate), static_cast<const T*>(up), chunks,
                  static_cast<T*>(dgate), static_cast<T*>(dup));
  });
}

}  // namespace qalora::kernels::cuda
