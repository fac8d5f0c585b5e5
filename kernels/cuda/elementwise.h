// The kernels that are bound by memory, and the shapes they are launched in: host functions, so that a test can hold
// them against the limits of each architecture. What each computes stands in qalora/kernels/cuda.h.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>

#include "kernels/cuda/dialect.h"

namespace qalora::kernels::cuda {

Status pool(void* x, int64_t stride, Type type, int64_t rows, int64_t width, const PoolOutput& pool, Stream stream);
Status rms_norm(const float* h, const void* residual, float* residual_out, const float* weight, float eps, int64_t rows,
                int64_t width, Type type, void* out, int64_t out_stride, const PoolOutput& pool, float* inverse,
                Stream stream);
Status rms_norm_backward(const void* dy, Type type, const float* h, const float* weight, const float* inverse,
                         const float* through, int64_t rows, int64_t width, float* dh, Stream stream);
Status swiglu(const void* gate, const void* up, Type type, int64_t rows, int64_t width, void* out, int64_t out_stride,
              const PoolOutput& pool, Stream stream);
Status swiglu_backward(const void* dout, const void* gate, const void* up, Type type, int64_t rows, int64_t width,
                       void* dgate, void* dup, Stream stream);
Status rope(const void* x, Type type, const float* cos, const float* sin, int64_t tokens, int64_t heads,
            int64_t head_dim, bool backward, void* out, Stream stream);
Status cross_entropy(void* logits, Type type, int64_t stride, const int64_t* targets, int64_t rows, int64_t vocab,
                     bool gradient, float* losses, Stream stream);

// ---- Shapes
// ----------------------------------------------------------------------------------------------------------------- A
// row is walked in chunks: the neighbouring elements that one lane loads and stores at once.

constexpr int kPoolUnit = 32;         // groups are whole multiples of this many elements
constexpr int kWarpSlots = 32;        // one float for each warp of the largest block
constexpr int kNormChunk = 4;         // 16 bytes of h, which is f32 and most of a norm's traffic
constexpr int kNormKept = 4;          // chunks a thread keeps in registers between its two passes
constexpr int kNormThreads = 1024;    // times 4 times 4: rows up to 16384 are read once
constexpr int kNormGradientKept = 2;  // of two inputs, and a third to come; rows up to 8192
constexpr int kSegmentThreads = 256;
constexpr int kSegmentKept = 2;  // chunks a thread loads before it computes
constexpr int kEntropyKept = 6;
// Two blocks a multiprocessor. What a row has beyond 24576 elements of 16 bits is read again: from L2 where the rows in
// work fit there, from memory for large vocabularies.
constexpr int kEntropyThreads = 512;
constexpr int64_t kMaxGrid = 0x7fffffff;
constexpr int64_t kMaxGridY = 0xffff;
constexpr int64_t kMaxShared = 48 * 1024;  // what every architecture gives without asking

constexpr int vector_elements(Type type) { return static_cast<int>(16 / bytes_of(type)); }
constexpr int64_t whole_warps(int64_t threads) { return tiles_over(threads, kWarp) * kWarp; }

// How the sums of a row's groups are taken; group_size 0: not at all.
struct Pooling {
  float* sums = nullptr;  // [rows, groups]
  int group_size = 0, groups = 0;
  // log2 of a group of 32, 64 or 128, which never leaves a warp, whose lanes hold at least 4 elements each. 0: the sums
  // go through shared memory in sums of 32.
  int shift = 0;
  bool columns = false;  // [groups] twice behind the outputs

  int64_t shared_bytes(int64_t elements) const {
    return group_size == 0 || shift != 0 ? 0 : tiles_over(elements, kPoolUnit) * static_cast<int64_t>(sizeof(float));
  }
};

// Of arguments that check_rows has found good.
inline Pooling make_pooling(const PoolOutput& pool, int64_t width) {
  Pooling result;
  if (pool.sums == nullptr && !pool.columns) return result;
  const int64_t group_size = std::min(pool.group_size, width);
  result.sums = pool.sums;
  result.columns = pool.columns;
  result.group_size = static_cast<int>(group_size);
  result.shift = group_size == 32 ? 5 : group_size == 64 ? 6 : group_size == 128 ? 7 : 0;
  result.groups = static_cast<int>(groups_per_row(width, group_size));
  return result;
}

// Rows whose outputs stand `stride` apart.
inline Status check_rows(int64_t rows, int64_t width, int64_t stride, const PoolOutput& pool) {
  if (rows < 0 || width <= 0 || stride < width) return Status::kBadArgument;
  if (width % kPoolUnit != 0 || width > kMaxGrid - kNormThreads * kNormChunk * kNormKept || rows > kMaxGrid)
    return Status::kUnsupported;
  if (pool.sums == nullptr && !pool.columns) return Status::kOk;
  if (pool.group_size <= 0) return Status::kBadArgument;
  if (pool.group_size % kPoolUnit != 0) return Status::kUnsupported;
  if (pool.columns && stride < width + 2 * groups_per_row(width, pool.group_size)) return Status::kBadArgument;
  return Status::kOk;
}

// A block of several chunks a thread for each row.
inline LaunchShape row_shape(int64_t rows, int64_t chunks, int kept, int max_threads, int64_t shared_bytes) {
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(rows));
  shape.block = dim3(static_cast<unsigned>(std::min<int64_t>(max_threads, whole_warps(tiles_over(chunks, kept)))));
  shape.shared_bytes = shared_bytes;
  return shape;
}

inline LaunchShape rms_norm_shape(int64_t rows, int64_t width, const Pooling& pooling) {
  return row_shape(rows, width / kNormChunk, kNormKept, kNormThreads,
                   kWarpSlots * static_cast<int64_t>(sizeof(float)) + pooling.shared_bytes(width));
}

inline LaunchShape rms_norm_backward_shape(int64_t rows, int64_t width) {
  return row_shape(rows, width / kNormChunk, kNormGradientKept, kNormThreads,
                   kWarpSlots * static_cast<int64_t>(sizeof(float)));
}

inline LaunchShape cross_entropy_shape(int64_t rows, int64_t vocab, Type type) {
  return row_shape(rows, tiles_over(vocab, vector_elements(type)), kEntropyKept, kEntropyThreads,
                   2 * kWarpSlots * static_cast<int64_t>(sizeof(float)));
}

// Where nothing but the groups ties a row together it is cut into segments of whole groups, so that one row of decoding
// fills more than one multiprocessor. Grid: [rows, segments of a row]
struct Segments {
  int chunks = 0;  // of a segment; the last of a row may be shorter
  int per_row = 0;
  LaunchShape shape;
};

inline Segments segments(int64_t rows, int64_t width, Type type, const Pooling& pooling) {
  const int64_t size = vector_elements(type), chunks = width / size;
  const int64_t unit = std::max<int64_t>(pooling.group_size, kPoolUnit) / size;
  const int64_t most = std::max<int64_t>(1, kSegmentThreads * kSegmentKept / unit) * unit;
  const int64_t per_row = tiles_over(chunks, most);
  Segments result;
  result.chunks = static_cast<int>(tiles_over(tiles_over(chunks, per_row), unit) * unit);
  result.per_row = static_cast<int>(tiles_over(chunks, result.chunks));
  result.shape =
      row_shape(rows, result.chunks, kSegmentKept, kSegmentThreads, pooling.shared_bytes(result.chunks * size));
  result.shape.grid.y = static_cast<unsigned>(result.per_row);
  return result;
}

inline LaunchShape swiglu_backward_shape(int64_t rows, int64_t width, Type type) {
  LaunchShape shape;
  shape.grid = dim3(
      static_cast<unsigned>(std::min(kMaxGrid, tiles_over(rows * width / vector_elements(type), kSegmentThreads))));
  shape.block = dim3(kSegmentThreads);
  return shape;
}

// Grid: [tokens]. Block: [chunks of half a head, heads], so that no thread divides to find out where it stands.
inline LaunchShape rope_shape(int64_t tokens, int64_t heads, int64_t head_dim, Type type) {
  const int64_t chunks = std::min<int64_t>(kSegmentThreads, tiles_over(head_dim / 2, vector_elements(type)));
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(tokens));
  shape.block = dim3(static_cast<unsigned>(chunks), static_cast<unsigned>(std::min(heads, kSegmentThreads / chunks)));
  return shape;
}

// ---- Dispatch
// ---------------------------------------------------------------------------------------------------------------

inline bool aligned_to(int64_t bytes, std::initializer_list<const void*> pointers) {
  return std::all_of(pointers.begin(), pointers.end(),
                     [&](const void* p) { return reinterpret_cast<uintptr_t>(p) % bytes == 0; });
}

// All are there and lie where an element of `bytes` may.
inline bool given(int64_t bytes, std::initializer_list<const void*> pointers) {
  return std::find(pointers.begin(), pointers.end(), nullptr) == pointers.end() && aligned_to(bytes, pointers);
}
// The same of pointers that may be null.
inline bool optional(int64_t bytes, std::initializer_list<const void*> pointers) { return aligned_to(bytes, pointers); }

template <typename T>
struct TypeTag {
  using type = T;
};

template <typename Run>
Status dispatch(Type type, Run run) {
  switch (type) {
    case Type::kFloat: return run(TypeTag<float>());
    case Type::kBFloat16: return run(TypeTag<__nv_bfloat16>());
    case Type::kHalf: return run(TypeTag<__half>());
  }
  return Status::kBadArgument;
}

// run(tag of the element's type, whether a chunk may be loaded at once)
template <typename Run>
Status dispatch(Type type, bool aligned, Run run) {
  return dispatch(type, [&](auto tag) { return aligned ? run(tag, std::true_type()) : run(tag, std::false_type()); });
}

}  // namespace qalora::kernels::cuda
