// Dense rows from packed codes, bound by memory: a warp takes a tile, a lane writes 8 neighbouring inputs of a row at a
// time, so that the 4 lanes of a row fill 64 bytes (bf16) with each store and a row's 256 bytes with the tile's four.
//
// kWhole: s * q by one product, + b by one sum, both rounded to fp32, then to the type: the CPU's bits. About 10
// instructions a weight on the wide path, half of what the memory's speed leaves time for on an H200 (2.75 bytes a
// weight).
// kConcat: see cuda.h.
#include "kernels/cuda/linear.h"
#include "kernels/cuda/unpack.h"

namespace qalora::kernels::cuda {

namespace {

constexpr int kWarps = 8;
constexpr int64_t kMostBlocks = 1 << 14;  // warps stride over more tiles than this

struct Unfolding {
  Layout layout;
  const uint32_t* codes;
  const float* scales;
  const float* offsets;
  int row_begin, row_end;
  int64_t tiles;  // that hold rows [row_begin, row_end)
  char* out;      // [row_end - row_begin, stride] of the type
  int64_t stride;
  bool wide;  // every row is 16-byte aligned
  uint32_t magic = Numbers<__nv_bfloat16>::kMagic;
};

__device__ __forceinline__ void round_pair(float first, float second, uint32_t& word, __nv_bfloat16) {
  word = word_of(__floats2bfloat162_rn(first, second));
}
__device__ __forceinline__ void round_pair(float first, float second, uint32_t& word, __half) {
  word = word_of(__floats2half2_rn(first, second));
}

__device__ __forceinline__ void store_one(float value, float* out) { *out = value; }
__device__ __forceinline__ void store_one(float value, __nv_bfloat16* out) { *out = __float2bfloat16_rn(value); }
__device__ __forceinline__ void store_one(float value, __half* out) { *out = __float2half_rn(value); }
__device__ __forceinline__ float widened(float value, float) { return value; }
__device__ __forceinline__ float widened(float value, __nv_bfloat16) {
  return __bfloat162float(__float2bfloat16_rn(value));
}
__device__ __forceinline__ float widened(float value, __half) { return __half2float(__float2half_rn(value)); }

// 8 neighbours. The panel is read by the next kernel, so it may stay in the cache.
template <typename Out>
__device__ __forceinline__ void store_eight(const float (&values)[8], Out* out, bool wide) {
  if (!wide) {
    for (int i = 0; i < 8; ++i) store_one(values[i], out + i);
  } else if constexpr (sizeof(Out) == 4) {
    reinterpret_cast<float4*>(out)[0] = make_float4(values[0], values[1], values[2], values[3]);
    reinterpret_cast<float4*>(out)[1] = make_float4(values[4], values[5], values[6], values[7]);
  } else {
    uint4 words;
    round_pair(values[0], values[1], words.x, Out());
    round_pair(values[2], values[3], words.y, Out());
    round_pair(values[4], values[5], words.z, Out());
    round_pair(values[6], values[7], words.w, Out());
    *reinterpret_cast<uint4*>(out) = words;
  }
}

// pairs: 4 bf16 pairs of q (whole) or q - c (concat), small integers. A bf16 is the upper half of a float.
template <Panel kPanel>
__device__ __forceinline__ void eight_weights(const uint32_t (&pairs)[4], float scale, float offset,
                                              float (&values)[8]) {
  for (int i = 0; i < 8; ++i) {
    const float code = __uint_as_float(i % 2 == 0 ? pairs[i / 2] << 16 : pairs[i / 2] & 0xFFFF0000u);
    const float product = __fmul_rn(scale, code);
    values[i] = kPanel == Panel::kWhole ? __fadd_rn(product, offset) : product;
  }
}

// b_c of one row and group behind the row's inputs, and behind all of those what rounding them lost.
template <int kBits, typename Out>
__device__ __forceinline__ void store_centred(const Unfolding& work, int row, int group, float scale, float offset) {
  if (row >= work.row_end || group >= work.layout.groups) return;
  const float centred = __fmaf_rn(scale, static_cast<float>(centre_of(kBits)), offset);
  Out* out = reinterpret_cast<Out*>(work.out) + (row - work.row_begin) * work.stride + work.layout.in_features + group;
  store_one(centred, out);
  store_one(centred - widened(centred, Out()), out + work.layout.groups);
}

template <int kBits, typename Out, Panel kPanel>
__device__ __forceinline__ void unfold_tile(const Unfolding& work, int row_tile, int tile, int lane) {
  constexpr int kCentre = kPanel == Panel::kWhole ? 0 : centre_of(kBits);
  const Layout& layout = work.layout;
  LaneCodes<kBits> codes;
  load_codes(work.codes + layout.words_at(row_tile, tile, kBits), lane, codes);
  const int quad = tile / layout.blocks_per_group;
  const int64_t place = layout.floats_at(row_tile, quad);
  const float2 scales = load_quad(work.scales + place, lane), offsets = load_quad(work.offsets + place, lane);
  const int row = row_tile * kTileRows + lane / 4, input = tile * kTileInputs + 8 * (lane % 4);
  Out* out = reinterpret_cast<Out*>(work.out) + (row - work.row_begin) * work.stride + input;
  GroupWalk group(layout.blocks_per_group, tile * kTileBlocks);
  each_block([&](auto block) {
    constexpr int kBlock = decltype(block)::value;
    uint32_t pairs[2][4];
    unpack_block<__nv_bfloat16, kCentre, kBlock>(codes, work.magic, pairs[0], pairs[1],
                                                 std::make_integer_sequence<int, 4>());
    for (int half = 0; half < 2; ++half) {
      const float scale = of_slot(half == 0 ? scales.x : scales.y, lane, group.slot);
      const float offset =
          kPanel == Panel::kWhole ? of_slot(half == 0 ? offsets.x : offsets.y, lane, group.slot) : 0.0f;
      float values[8];
      eight_weights<kPanel>(pairs[half], scale, offset, values);
      const bool inside = row + 8 * half < work.row_end && input + kBlockInputs * kBlock < layout.in_features;
      if (inside) store_eight(values, out + 8 * half * work.stride + kBlockInputs * kBlock, work.wide);
    }
    group.next();
  });
  if (kPanel == Panel::kConcat && tile % layout.blocks_per_group == 0) {
    store_centred<kBits, Out>(work, row, quad * kQuad + lane % 4, scales.x, offsets.x);
    store_centred<kBits, Out>(work, row + 8, quad * kQuad + lane % 4, scales.y, offsets.y);
  }
}

template <int kBits, typename Out, Panel kPanel>
__global__ void __launch_bounds__(kWarps* kWarp) dequantize_kernel(Unfolding work) {
  const int lane = static_cast<int>(threadIdx.x % kWarp);
  const int first = work.row_begin / kTileRows;
  const int64_t warps = int64_t{gridDim.x} * kWarps;
  for (int64_t i = int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp; i < work.tiles; i += warps) {
    unfold_tile<kBits, Out, kPanel>(work, first + static_cast<int>(i / work.layout.tiles),
                                    static_cast<int>(i % work.layout.tiles), lane);
  }
}

template <int kBits, Panel kPanel>
Status launch_dequantize(const Unfolding& work, Type type, const LaunchShape& shape, Stream stream) {
  switch (type) {
    case Type::kFloat: return launch(dequantize_kernel<kBits, float, kPanel>, shape, stream, work);
    case Type::kBFloat16: return launch(dequantize_kernel<kBits, __nv_bfloat16, kPanel>, shape, stream, work);
    case Type::kHalf: return launch(dequantize_kernel<kBits, __half, kPanel>, shape, stream, work);
  }
  return Status::kBadArgument;
}

template <Panel kPanel>
Status launch_bits(const Unfolding& work, int bits, Type type, const LaunchShape& shape, Stream stream) {
  switch (bits) {
    case 2: return launch_dequantize<2, kPanel>(work, type, shape, stream);
    case 3: return launch_dequantize<3, kPanel>(work, type, shape, stream);
    default: return launch_dequantize<4, kPanel>(work, type, shape, stream);
  }
}

}  // namespace

LaunchShape dequantize_shape(const TiledShape& shape, int64_t rows) {
  const int64_t blocks = tiles_over(tiles_over(rows, kTileRows) * shape.input_tiles(), kWarps);
  return {dim3(static_cast<unsigned>(blocks < kMostBlocks ? blocks : kMostBlocks)), dim3(kWarps * kWarp), 0};
}

Status dequantize(const TiledView& weight, int64_t row_begin, int64_t row_end, Panel panel, Type type, void* out,
                  int64_t stride, Stream stream) {
  const Status status = check(weight);
  if (status != Status::kOk) return status;
  const int64_t width = weight.shape.in_features + (panel == Panel::kConcat ? 2 * weight.shape.groups() : 0);
  if (row_begin < 0 || row_begin % kTileRows != 0 || row_begin > row_end || row_end > weight.shape.out_features ||
      stride < width || !aligned(out, bytes_of(type))) {
    return Status::kBadArgument;
  }
  if (row_begin == row_end) return Status::kOk;
  const bool wide = aligned(out, 16) && stride * bytes_of(type) % 16 == 0;
  const int64_t tiles = tiles_over(row_end - row_begin, kTileRows) * weight.shape.input_tiles();
  const Unfolding work = {
      Layout(weight.shape),      weight.codes, weight.scales,           weight.offsets, static_cast<int>(row_begin),
      static_cast<int>(row_end), tiles,        static_cast<char*>(out), stride,         wide};
  const LaunchShape shape = dequantize_shape(weight.shape, row_end - row_begin);
  const int bits = weight.shape.bits;
  return panel == Panel::kWhole ? launch_bits<Panel::kWhole>(work, bits, type, shape, stream)
                                : launch_bits<Panel::kConcat>(work, bits, type, shape, stream);
}

}  // namespace qalora::kernels::cuda
