// RMSNorm with the residual before it and the groups' sums after it, and its gradient. One block a row; a row of up to
// 16384 elements (8192 for the gradient) stays in registers between the sum over it and the outputs, what is beyond is
// read again.
#include "kernels/cuda/row.h"

namespace qalora::kernels::cuda {

namespace {

using Floats = Chunk<float, kNormChunk>;

__device__ __forceinline__ float dot(const float (&a)[kNormChunk], const float (&b)[kNormChunk], float sum) {
#pragma unroll
  for (int i = 0; i < kNormChunk; ++i) sum += a[i] * b[i];
  return sum;
}

// h (+ residual), kept for the backward in residual_out when there is a residual.
template <typename T, bool kAligned>
struct NormInput {
  const float* h;       // [width], as the two below
  const T* residual;    // or null
  float* residual_out;  // may be h

  // Loads apart from stores: the compiler cannot know that they do not overlap, and would let each load wait for the
  // store before it.
  __device__ __forceinline__ void load(int element, float (&values)[kNormChunk], Chunk<T, kNormChunk>& added) const {
    Floats loaded;
    loaded.template load<kAligned>(h + element);
    loaded.unpack(values);
    if (residual != nullptr) added.template load<kAligned>(residual + element);
  }

  __device__ __forceinline__ void add(int element, float (&values)[kNormChunk],
                                      const Chunk<T, kNormChunk>& added) const {
    if (residual == nullptr) return;
    float addend[kNormChunk];
    added.unpack(addend);
#pragma unroll
    for (int i = 0; i < kNormChunk; ++i) values[i] += addend[i];
    Floats sum;
    sum.pack(values);
    sum.template store<kAligned>(residual_out + element);
  }

  __device__ __forceinline__ void reload(int element, float (&values)[kNormChunk]) const {
    Floats loaded;
    loaded.template load<kAligned>((residual == nullptr ? h : residual_out) +
                                   element);  // of which this thread wrote these
    loaded.unpack(values);
  }
};

// h, residual_out: [rows, width] f32, residual: [rows, width], out: [rows, out_stride]
template <typename T, bool kAligned>
__global__ void __launch_bounds__(kNormThreads)
    rms_norm_kernel(const float* h, const T* residual, float* residual_out, const float* __restrict__ weight, float eps,
                    int width, T* out, int64_t out_stride, Pooling pooling, float* inverse) {
  const int64_t row = blockIdx.x;
  const int chunks = width / kNormChunk, threads = static_cast<int>(blockDim.x), thread = static_cast<int>(threadIdx.x);
  NormInput<T, kAligned> input = {h + row * width, nullptr, nullptr};
  if (residual != nullptr) input.residual = residual + row * width, input.residual_out = residual_out + row * width;
  float* const slots = dynamic_shared<float>();
  T* const row_out = out + row * out_stride;

  float kept[kNormKept][kNormChunk];
  float squares = 0;
  {
    Chunk<T, kNormChunk> added[kNormKept];
#pragma unroll
    for (int k = 0; k < kNormKept; ++k) {
      const int chunk = thread + k * threads;
      if (chunk < chunks) input.load(chunk * kNormChunk, kept[k], added[k]);
    }
#pragma unroll
    for (int k = 0; k < kNormKept; ++k) {
      const int chunk = thread + k * threads;
      if (chunk < chunks) {
        input.add(chunk * kNormChunk, kept[k], added[k]);
        squares = dot(kept[k], kept[k], squares);
      }
    }
  }
  for (int chunk = thread + kNormKept * threads; chunk < chunks; chunk += threads) {
    float values[kNormChunk];
    Chunk<T, kNormChunk> added;
    input.load(chunk * kNormChunk, values, added);
    input.add(chunk * kNormChunk, values, added);
    squares = dot(values, values, squares);
  }

  const float scale = rsqrtf(block_sum(squares, slots) * (1.0f / static_cast<float>(width)) + eps);
  if (thread == 0 && inverse != nullptr) inverse[row] = scale;
  const GroupSums<T> groups(pooling, row, row_out + width, slots + kWarpSlots, 0);
  const auto finish = [&](int chunk, bool active, float(&values)[kNormChunk]) {
    if (active) {
      float factors[kNormChunk];
      load_constants<kAligned>(weight + chunk * kNormChunk, factors);
#pragma unroll
      for (int i = 0; i < kNormChunk; ++i) values[i] = values[i] * scale * factors[i];
      Chunk<T, kNormChunk> packed;
      packed.pack(values);
      packed.template store<kAligned>(row_out + chunk * kNormChunk);
      packed.unpack(values);  // the sums are those of the outputs as they were written
    }
    groups.add(chunk * kNormChunk, active, values);
  };
#pragma unroll
  for (int k = 0; k < kNormKept; ++k) finish(thread + k * threads, thread + k * threads < chunks, kept[k]);
  for (int begin = warp_index() * kWarp + kNormKept * threads; begin < chunks; begin += threads) {
    const int chunk = begin + lane_index();
    float values[kNormChunk] = {};
    if (chunk < chunks) input.reload(chunk * kNormChunk, values);
    finish(chunk, chunk < chunks, values);
  }
  groups.finish(width);
}

// With n = h * r and g = dy * weight: dh = r * (g - n * mean(g * n)) + through. dy: [rows, width]; h, through, dh:
// [rows, width] f32
template <typename T, bool kAligned>
__global__ void __launch_bounds__(kNormThreads)
    rms_norm_backward_kernel(const T* dy, const float* h, const float* __restrict__ weight,
                             const float* __restrict__ inverse, const float* through, int width, float* dh) {
  const int64_t row = blockIdx.x;
  const int chunks = width / kNormChunk, threads = static_cast<int>(blockDim.x), thread = static_cast<int>(threadIdx.x);
  const T* const row_dy = dy + row * width;
  const float* const row_h = h + row * width;
  const float* const row_through = through == nullptr ? nullptr : through + row * width;
  float* const row_dh = dh + row * width;
  const float scale = __ldg(inverse + row);

  using Gradients = Chunk<T, kNormChunk>;
  const auto load = [&](int chunk, Floats& loaded, Gradients& loaded_dy) {
    loaded.template load<kAligned>(row_h + chunk * kNormChunk);
    loaded_dy.template load<kAligned>(row_dy + chunk * kNormChunk);
  };
  const auto prepare = [&](int chunk, const Floats& loaded, const Gradients& loaded_dy, float(&normed)[kNormChunk],
                           float(&g)[kNormChunk]) {
    loaded.unpack(normed);
    loaded_dy.unpack(g);
    float factors[kNormChunk];
    load_constants<kAligned>(weight + chunk * kNormChunk, factors);
#pragma unroll
    for (int i = 0; i < kNormChunk; ++i) {
      normed[i] *= scale;
      g[i] *= factors[i];
    }
  };
  float normed[kNormGradientKept][kNormChunk], g[kNormGradientKept][kNormChunk];
  float products = 0;
  {
    Floats loaded[kNormGradientKept];
    Gradients loaded_dy[kNormGradientKept];
#pragma unroll
    for (int k = 0; k < kNormGradientKept; ++k) {
      const int chunk = thread + k * threads;
      if (chunk < chunks) load(chunk, loaded[k], loaded_dy[k]);
    }
#pragma unroll
    for (int k = 0; k < kNormGradientKept; ++k) {
      const int chunk = thread + k * threads;
      if (chunk < chunks) {
        prepare(chunk, loaded[k], loaded_dy[k], normed[k], g[k]);
        products = dot(g[k], normed[k], products);
      }
    }
  }
  for (int chunk = thread + kNormGradientKept * threads; chunk < chunks; chunk += threads) {
    Floats loaded;
    Gradients loaded_dy;
    float one_normed[kNormChunk], one_g[kNormChunk];
    load(chunk, loaded, loaded_dy);
    prepare(chunk, loaded, loaded_dy, one_normed, one_g);
    products = dot(one_g, one_normed, products);
  }

  const float mean = block_sum(products, dynamic_shared<float>()) * (1.0f / static_cast<float>(width));
  const auto load_through = [&](int chunk, Floats& added) {
    added.fill(0);
    if (row_through != nullptr) added.template load<kAligned>(row_through + chunk * kNormChunk);
  };
  const auto finish = [&](int chunk, const float(&n)[kNormChunk], const float(&from)[kNormChunk], Floats& packed) {
    float sum[kNormChunk];
    packed.unpack(sum);
#pragma unroll
    for (int i = 0; i < kNormChunk; ++i) sum[i] += scale * (from[i] - n[i] * mean);
    packed.pack(sum);
    packed.template store<kAligned>(row_dh + chunk * kNormChunk);
  };
  Floats added[kNormGradientKept];
#pragma unroll
  for (int k = 0; k < kNormGradientKept; ++k) {
    const int chunk = thread + k * threads;
    if (chunk < chunks) load_through(chunk, added[k]);
  }
#pragma unroll
  for (int k = 0; k < kNormGradientKept; ++k) {
    const int chunk = thread + k * threads;
    if (chunk < chunks) finish(chunk, normed[k], g[k], added[k]);
  }
  for (int chunk = thread + kNormGradientKept * threads; chunk < chunks; chunk += threads) {
    Floats loaded;
    Gradients loaded_dy;
    float one_normed[kNormChunk], one_g[kNormChunk];
    load(chunk, loaded, loaded_dy);
    prepare(chunk, loaded, loaded_dy, one_normed, one_g);
    load_through(chunk, added[0]);
    finish(chunk, one_normed, one_g, added[0]);
  }
}

}  // namespace

Status rms_norm(const float* h, const void* residual, float* residual_out, const float* weight, float eps, int64_t rows,
                int64_t width, Type type, void* out, int64_t out_stride, const PoolOutput& pool, float* inverse,
                Stream stream) {
  if ((residual == nullptr) != (residual_out == nullptr)) return Status::kBadArgument;
  const Status checked = check_rows(rows, width, out_stride, pool);
  if (checked != Status::kOk || rows == 0) return checked;
  const bool floats = given(4, {h, weight}) && optional(4, {residual_out, inverse, pool.sums});
  if (!floats || !given(bytes_of(type), {out}) || !optional(bytes_of(type), {residual})) return Status::kBadArgument;
  const Pooling pooling = make_pooling(pool, width);
  const LaunchShape shape = rms_norm_shape(rows, width, pooling);
  if (shape.shared_bytes > kMaxShared) return Status::kUnsupported;
  const bool aligned = aligned_to(16, {h, residual_out, weight}) &&
                       aligned_to(kNormChunk * bytes_of(type), {residual, out}) && out_stride % kNormChunk == 0;
  return dispatch(type, aligned, [&](auto tag, auto whole) {
    using T = typename decltype(tag)::type;
    return launch(rms_norm_kernel<T, decltype(whole)::value>, shape, stream, h, static_cast<const T*>(residual),
                  residual_out, weight, eps, static_cast<int>(width), static_cast<T*>(out), out_stride, pooling,
                  inverse);
  });
}

Status rms_norm_backward(const void* dy, Type type, const float* h, const float* weight, const float* inverse,
                         const float* through, int64_t rows, int64_t width, float* dh, Stream stream) {
  const Status checked = check_rows(rows, width, width, PoolOutput());
  if (checked != Status::kOk || rows == 0) return checked;
  if (!given(bytes_of(type), {dy}) || !given(4, {h, weight, inverse, dh}) || !optional(4, {through}))
    return Status::kBadArgument;
  const bool aligned = aligned_to(16, {h, weight, through, dh}) && aligned_to(kNormChunk * bytes_of(type), {dy});
  return dispatch(type, aligned, [&](auto tag, auto whole) {
    using T = typename decltype(tag)::type;
    return launch(rms_norm_backward_kernel<T, decltype(whole)::value>, rms_norm_backward_shape(rows, width), stream,
                  static_cast<const T*>(dy), h, weight, inverse, through, static_cast<int>(width), dh);
  });
}

}  // namespace qalora::kernels::cuda
