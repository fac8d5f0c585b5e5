// The softmax's cross-entropy and its gradient, one block a row: a pass for the largest logit and the sum of
// exponentials below it, a second one for the gradient. As much of a row as fits stays in registers in between.
#include <cfloat>

#include "kernels/cuda/row.h"

namespace qalora::kernels::cuda {

namespace {

// The sum of exp(logit - largest) over some logits. A NaN never becomes the largest but makes the sum NaN; +inf does so
// too. It begins at the lowest finite number: with -inf, a logit of -inf would give exp(-inf + inf).
template <typename T>
struct Softmax {
  float largest = -FLT_MAX;
  float sum = 0;

  template <int kSize>
  __device__ __forceinline__ void add(const Chunk<T, kSize>& logits) {
    float values[kSize];
    logits.unpack(values);
    float grown = largest, more = 0;
#pragma unroll
    for (int i = 0; i < kSize; ++i) grown = fmaxf(grown, values[i]);
#pragma unroll
    for (int i = 0; i < kSize; ++i) more += exponential<T>(values[i] - grown);
    sum = sum * exponential<T>(largest - grown) + more;
    largest = grown;
  }
};

// slots: [2 * kWarpSlots] in shared memory. The result is in every thread.
template <typename T>
__device__ __forceinline__ Softmax<T> merge_block(Softmax<T> part, float* slots) {
  const int warps = static_cast<int>(blockDim.x) / kWarp, lane = lane_index();
  float largest = warp_max(part.largest);
  const float sum = warp_sum(part.sum * exponential<T>(part.largest - largest));
  if (lane == 0) slots[warp_index()] = largest, slots[kWarpSlots + warp_index()] = sum;
  __syncthreads();
  part.largest = lane < warps ? slots[lane] : -FLT_MAX;
  part.sum = lane < warps ? slots[kWarpSlots + lane] : 0.0f;
  largest = warp_max(part.largest);
  return {largest, warp_sum(part.sum * exponential<T>(part.largest - largest))};
}

// logits: [rows, stride], targets: [rows], losses: [rows]
template <typename T, bool kAligned>
__global__ void __launch_bounds__(kEntropyThreads, 2)
    cross_entropy_kernel(T* logits, int64_t stride, const int64_t* __restrict__ targets, int vocab, bool gradient,
                         float* losses) {
  constexpr int kSize = 16 / sizeof(T);
  constexpr uint32_t kMinusInfinity = std::is_same_v<T, float>    ? 0xff800000u
                                      : std::is_same_v<T, __half> ? 0xfc00fc00u
                                                                  : 0xff80ff80u;
  const int64_t row = blockIdx.x, wanted = targets[row];
  const int chunks = (vocab + kSize - 1) / kSize, threads = static_cast<int>(blockDim.x),
            thread = static_cast<int>(threadIdx.x);
  T* const row_logits = logits + row * stride;
  // A target outside the vocabulary has no loss; what it gets must not look like one.
  const int target = wanted >= 0 && wanted < vocab ? static_cast<int>(wanted) : -1;
  // Read before the barrier, after which the gradient overwrites it.
  const float target_logit = thread == 0 && target >= 0 ? static_cast<float>(row_logits[target]) : 0.0f;

  // What is beyond the row counts as a logit of -inf.
  const auto load = [&](int chunk) {
    Chunk<T, kSize> loaded;
    loaded.fill(kMinusInfinity);
    if (chunk < chunks) loaded.template load<kAligned>(row_logits + int64_t{chunk} * kSize, vocab - chunk * kSize);
    return loaded;
  };
  Chunk<T, kSize> kept[kEntropyKept];
  Softmax<T> part;
#pragma unroll
  for (int k = 0; k < kEntropyKept; ++k) kept[k] = load(thread + k * threads);
#pragma unroll
  for (int k = 0; k < kEntropyKept; ++k) part.add(kept[k]);
#pragma unroll 2
  for (int chunk = thread + kEntropyKept * threads; chunk < chunks; chunk += threads) part.add(load(chunk));

  const Softmax<T> all = merge_block(part, dynamic_shared<float>());
  if (thread == 0)
    losses[row] = target >= 0 ? logf(all.sum) + (all.largest - target_logit) : __uint_as_float(0x7fffffffu);
  if (!gradient) return;
  const float scale = 1.0f / all.sum;
  const int hot_chunk = target < 0 ? -1 : target / kSize;
  const auto differentiate = [&](int chunk, Chunk<T, kSize> chunk_logits) {
    if (chunk >= chunks) return;
    float values[kSize];
    chunk_logits.unpack(values);
#pragma unroll
    for (int i = 0; i < kSize; ++i) values[i] = exponential<T>(values[i] - all.largest) * scale;
    if (chunk == hot_chunk) {
#pragma unroll
      for (int i = 0; i < kSize; ++i) values[i] -= chunk * kSize + i == target ? 1.0f : 0.0f;
    }
    chunk_logits.pack(values);
    chunk_logits.template store<kAligned>(row_logits + int64_t{chunk} * kSize, vocab - chunk * kSize);
  };
#pragma unroll
  for (int k = 0; k < kEntropyKept; ++k) differentiate(thread + k * threads, kept[k]);
#pragma unroll 1
  for (int chunk = thread + kEntropyKept * threads; chunk < chunks; chunk += threads) differentiate(chunk, load(chunk));
}

}  // namespace

Status cross_entropy(void* logits, Type type, int64_t stride, const int64_t* targets, int64_t rows, int64_t vocab,
                     bool gradient, float* losses, Stream stream) {
  if (rows < 0 || vocab <= 0 || stride < vocab) return Status::kBadArgument;
  if (rows > kMaxGrid || vocab > kMaxGrid / 2) return Status::kUnsupported;
  if (rows == 0) return Status::kOk;
  if (!given(bytes_of(type), {logits}) || !given(8, {targets}) || !given(4, {losses})) return Status::kBadArgument;
  const bool aligned = aligned_to(16, {logits}) && stride % vector_elements(type) == 0;
  return dispatch(type, aligned, [&](auto tag, auto whole) {
    using T = typename decltype(tag)::type;
    return launch(cross_entropy_kernel<T, decltype(whole)::value>, cross_entropy_shape(rows, vocab, type), stream,
                  static_cast<T*>(logits), stride, targets, static_cast<int>(vocab), gradient, losses);
  });
}

}  // namespace qalora::kernels::cuda
