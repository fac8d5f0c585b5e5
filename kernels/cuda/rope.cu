// The rotary embedding: element i of a head's first half and element i of its second are turned by one angle.
#include "kernels/cuda/row.h"

namespace qalora::kernels::cuda {

namespace {

// Block: a token. Thread: a chunk of a head's first half and that of its second. x, out: [tokens, heads, head_dim]; out
// may be x: a thread has read both of its chunks before it writes.
template <typename T, bool kAligned>
__global__ void __launch_bounds__(kSegmentThreads)
    rope_kernel(const T* x, const float* __restrict__ cos, const float* __restrict__ sin, int heads, int head_dim,
                float direction, T* out) {
  constexpr int kSize = 16 / sizeof(T);
  const int half = head_dim / 2, chunks = (half + kSize - 1) / kSize;
  const int64_t token = blockIdx.x;
  const auto turn = [&](int head, int begin) {
    const int count = kAligned ? kSize : min(kSize, half - begin);
    const int64_t at = (token * heads + head) * head_dim + begin;
    Chunk<T, kSize> first, second;
    first.fill(0);
    second.fill(0);
    first.template load<kAligned>(x + at, count);
    second.template load<kAligned>(x + at + half, count);
    float c[kSize], s[kSize], a[kSize], b[kSize];
    load_constants<kAligned>(cos + token * head_dim + begin, c, count);
    load_constants<kAligned>(sin + token * head_dim + begin, s, count);
    first.unpack(a);
    second.unpack(b);
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      const float sine = direction * s[i], one = a[i] * c[i] - b[i] * sine;
      b[i] = b[i] * c[i] + a[i] * sine;
      a[i] = one;
    }
    first.pack(a);
    second.pack(b);
    first.template store<kAligned>(out + at, count);
    second.template store<kAligned>(out + at + half, count);
  };
  for (int head = static_cast<int>(threadIdx.y); head < heads; head += static_cast<int>(blockDim.y)) {
    for (int chunk = static_cast<int>(threadIdx.x); chunk < chunks; chunk += static_cast<int>(blockDim.x))
      turn(head, chunk * kSize);
  }
}

}  // namespace

Status rope(const void* x, Type type, const float* cos, const float* sin, int64_t tokens, int64_t heads,
            int64_t head_dim, bool backward, void* out, Stream stream) {
  if (tokens < 0 || heads <= 0 || head_dim <= 0) return Status::kBadArgument;
  if (head_dim % 2 != 0 || tokens > kMaxGrid || head_dim > kMaxGrid / 2 || heads > kMaxGrid / 2 / head_dim)
    return Status::kUnsupported;
  if (tokens == 0) return Status::kOk;
  if (!given(bytes_of(type), {x, out}) || !given(4, {cos, sin})) return Status::kBadArgument;
  const bool aligned = aligned_to(16, {x, out, cos, sin}) && head_dim / 2 % vector_elements(type) == 0;
  return dispatch(type, aligned, [&](auto tag, auto whole) {
    using T = typename decltype(tag)::type;
    return launch(rope_kernel<T, decltype(whole)::value>, rope_shape(tokens, heads, head_dim, type), stream,
                  static_cast<const T*>(x), cos, sin, static_cast<int>(heads), static_cast<int>(head_dim),
                  backward ? -1.0f : 1.0f, static_cast<T*>(out));
  });
}

}  // namespace qalora::kernels::cuda
