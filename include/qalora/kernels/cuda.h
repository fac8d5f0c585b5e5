// The kernels of one accelerator as a table of functions: raw device pointers, sizes, a stream; no LibTorch, no
// exceptions. The CUDA plug-in fills the table with kernels built by nvcc; tests fill it with the same sources built
// for the host.
#pragma once

#include <cstdint>

#include "qalora/kernels/packed.h"

namespace qalora::kernels::cuda {

using Stream = void*;  // a cudaStream_t

enum class Type : int { kFloat, kBFloat16, kHalf };
constexpr int64_t bytes_of(Type type) { return type == Type::kFloat ? 4 : 2; }

// ---- Lane order
// ------------------------------------------------------------------------------------------------------------- A
// weight on the device is cut into tiles of 16 rows x 128 inputs, the words of a tile in the order in which the 32
// lanes of a warp feed them to mma.m16n8k16 (kernels/cuda/tile.h has the bits): one coalesced load a lane, no shuffle.
// Rows and inputs are filled up with zero codes, zero scales and zero offsets.
constexpr int kTileRows = 16;
constexpr int kTileInputs = 128;
constexpr int kQuad = 4;  // groups whose scales (and offsets) lie together
constexpr int64_t tiles_over(int64_t count, int64_t size) { return (count + size - 1) / size; }

struct TiledShape {
  int64_t out_features = 0, in_features = 0, group_size = 0;
  int bits = 0;

  int64_t groups() const { return groups_per_row(in_features, group_size); }
  int64_t row_tiles() const { return tiles_over(out_features, kTileRows); }
  int64_t input_tiles() const { return tiles_over(in_features, kTileInputs); }
  int64_t quads() const { return tiles_over(groups(), kQuad); }
  int64_t code_words() const { return row_tiles() * input_tiles() * (kTileRows * kTileInputs / 32) * bits; }
  int64_t group_floats() const { return row_tiles() * quads() * kTileRows * kQuad; }  // of scales; of offsets
};

// codes: [row_tiles, input_tiles, 64 * bits] u32
// scales, offsets: [row_tiles, quads, 32 lanes, 2] f32: lane l's two are those of rows l / 4 and l / 4 + 8, group 4 *
// quad + l % 4
struct TiledView {
  TiledShape shape;
  const uint32_t* codes = nullptr;
  const float* scales = nullptr;
  const float* offsets = nullptr;
};

// Bits 2, 3, 4; group_size a multiple of 32; in_features a multiple of 32. Everything else stays on the CPU.
bool supports(const TiledShape& shape);

// What a row of a dequantised weight holds. Centred: w = s * (q - c) + (b + s * c) with c = 2^(bits - 1); the first
// part does not know of any adapter or merge, the second, "b_c", is small and carries all of it.
enum class Panel : int {
  kWhole,   // [in_features]: s * q + b, in f32 by one product and one sum (the CPU's bits), then rounded
  kConcat,  // [in_features + 2 * groups]: s * (q - c), then b_c rounded, then what that rounding lost (kernels.md 2.4)
};

// Sums of each group of a row of outputs, written beside them by the kernel that makes them.
struct PoolOutput {
  float* sums = nullptr;  // [rows, groups] f32, or null
  int64_t group_size = 0;
  bool columns = false;  // also as two equal sets of `groups` columns behind the outputs (out_stride >= width + 2 *
                         // groups): a product with a kConcat panel then adds b_c, of which nothing is lost, times the
                         // sums rounded to the outputs' type (bf16: by 2^-9; fp16 sums beyond 65504 overflow, and the
                         // program computes in bf16 or f32)
};

// What runs for how many rows stands in qalora/kernels/cuda_table.h. Errors: kUnsupported, kBadArgument, kDeviceError
// (see last_error).
struct Api {
  // From the checkpoint's layout (packed.h; all pointers on the device) to lane order.
  Status (*repack)(const PackedView& from, uint32_t* codes, float* scales, float* offsets, Stream stream);
  // folded = offsets + scaling * B A in fp32, in lane order. a: [rank, groups], b: [out_features, rank] f32
  Status (*fold)(const TiledShape& shape, const float* offsets, const float* a, const float* b, int64_t rank,
                 float scaling, float* folded, Stream stream);
  // Rows [row_begin, row_end), row_begin a multiple of 16. out: [row_end - row_begin, stride] of `type`, stride in
  // elements
  Status (*dequantize)(const TiledView& weight, int64_t row_begin, int64_t row_end, Panel panel, Type type, void* out,
                       int64_t stride, Stream stream);
  // y = x . W^T for 1 to 8 rows, from the codes: y = sum_g s (q - c) . x + sum_g b_c pool(x). x: [rows, x_stride] bf16
  // or fp16, sums: [rows, groups] f32, y: [rows, y_stride] of y_type. x is 16-byte aligned, x_stride a multiple of 8.
  Status (*matvec)(const TiledView& weight, const void* x, int64_t x_stride, Type x_type, const float* sums,
                   int64_t rows, void* y, int64_t y_stride, Type y_type, Stream stream);
  // The same for up to a few hundred rows on tensor cores. workspace: matmul_workspace_bytes, may be null when that is
  // 0.
  int64_t (*matmul_workspace_bytes)(const TiledShape& shape, int64_t rows, int multiprocessors);
  Status (*matmul)(const TiledView& weight, const void* x, int64_t x_stride, Type x_type, const float* sums,
                   int64_t rows, void* y, int64_t y_stride, Type y_type, void* workspace, int multiprocessors,
                   Stream stream);

  // sums of groups of x: [rows, stride] of `type`, width a multiple of 32; columns of `pool` go into x's own rows.
  Status (*pool)(void* x, int64_t stride, Type type, int64_t rows, int64_t width, const PoolOutput& pool,
                 Stream stream);
  // residual_out = h + residual (both may be null: then h itself is normed and nothing is written); out = norm(.) *
  // weight. h, residual_out: [rows, width] f32; residual: [rows, width] of `type`; weight: [width] f32; inverse: [rows]
  // f32, kept for the backward
  Status (*rms_norm)(const float* h, const void* residual, float* residual_out, const float* weight, float eps,
                     int64_t rows, int64_t width, Type type, void* out, int64_t out_stride, const PoolOutput& pool,
                     float* inverse, Stream stream);
  // dh = through (null: nothing) + the norm's gradient. dy: [rows, width] of `type`; through, dh: [rows, width] f32
  // (may be one buffer)
  Status (*rms_norm_backward)(const void* dy, Type type, const float* h, const float* weight, const float* inverse,
                              const float* through, int64_t rows, int64_t width, float* dh, Stream stream);
  // out = silu(gate) * up. gate, up: [rows, width] of `type`
  Status (*swiglu)(const void* gate, const void* up, Type type, int64_t rows, int64_t width, void* out,
                   int64_t out_stride, const PoolOutput& pool, Stream stream);
  // dout: [rows, width] of `type` -> dgate, dup (may be gate's and up's own memory)
  Status (*swiglu_backward)(const void* dout, const void* gate, const void* up, Type type, int64_t rows, int64_t width,
                            void* dgate, void* dup, Stream stream);
  // x . cos + rotate_half(x) . sin, in fp32, rounded once; with `backward` the other way round. x, out: [tokens, heads,
  // head_dim] of `type` (out may be x), cos, sin: [tokens, head_dim] f32 of which the first halves are read
  Status (*rope)(const void* x, Type type, const float* cos, const float* sin, int64_t tokens, int64_t heads,
                 int64_t head_dim, bool backward, void* out, Stream stream);
  // losses[row] = -log softmax(logits[row])[target]; with `gradient` the logits become softmax - one_hot(target), in
  // place. logits: [rows, stride] of `type`, targets: [rows] i64 in [0, vocab); losses: [rows] f32
  Status (*cross_entropy)(void* logits, Type type, int64_t stride, const int64_t* targets, int64_t rows, int64_t vocab,
                          bool gradient, float* losses, Stream stream);

  const char* (*last_error)();  // of the last kDeviceError on this thread: the driver's own words
};

// Of the sources this was compiled from.
const Api& api();

}  // namespace qalora::kernels::cuda
