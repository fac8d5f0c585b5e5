// From the checkpoint's row streams (packed.h) to lane order (tile.h). One thread a word of the result; what lies
// outside the matrix becomes zero.
#include "kernels/cuda/linear.h"
#include "kernels/cuda/tile.h"

namespace qalora::kernels::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int64_t kMostBlocks = 1 << 16;  // threads stride over more words than this

LaunchShape word_shape(int64_t words) {
  const int64_t blocks = tiles_over(words, kThreads);
  return {dim3(static_cast<unsigned>(blocks < kMostBlocks ? blocks : kMostBlocks)), dim3(kThreads), 0};
}

// The 8 codes of `row` that begin at input k, a multiple of 8: 8 * bits bits of the row's stream, lowest first.
template <int kBits>
__device__ uint32_t eight_codes(const PackedView& from, int64_t row, int64_t k) {
  if (row >= from.out_features || k >= from.in_features) return 0;
  const uint32_t* words = from.codes + row * (from.in_features / 32 * kBits);
  const int64_t position = k * kBits;
  const int shift = static_cast<int>(position % 32);
  uint32_t codes = words[position / 32] >> shift;
  if (shift + 8 * kBits > 32) codes |= words[position / 32 + 1] << (32 - shift);
  return kBits == 4 ? codes : codes & ((1u << (8 * kBits % 32)) - 1);
}

// One field of `kWidth` bits of each code, from bit kFrom on, spread in pairs: pair i at bits kStride * i and 16 +
// kStride * i.
template <int kBits, int kFrom, int kWidth, int kStride>
__device__ uint32_t in_pairs(uint32_t codes) {
  constexpr uint32_t kMask = (1u << kWidth) - 1;
  uint32_t word = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t even = codes >> (2 * i * kBits + kFrom) & kMask,
                   odd = codes >> ((2 * i + 1) * kBits + kFrom) & kMask;
    word |= even << (kStride * i) | odd << (16 + kStride * i);
  }
  return word;
}

// Word `word` of the tile at rows row.., inputs k..
template <int kBits>
__device__ uint32_t tile_word(const PackedView& from, int64_t row, int64_t k, int word) {
  if constexpr (kBits == 4) {
    const int half = word / 128, lane = word % 128 / 4, block = word % 4;
    return in_pairs<4, 0, 4, 4>(
        eight_codes<4>(from, row + lane / 4 + 8 * half, k + kBlockInputs * block + 8 * (lane % 4)));
  } else if (kBits == 2 || word < 128) {
    const int lane = word / 4, block = word % 4;
    const int64_t input = k + kBlockInputs * block + 8 * (lane % 4);
    return in_pairs<kBits, 0, 2, 2>(eight_codes<kBits>(from, row + lane / 4, input)) |
           in_pairs<kBits, 0, 2, 2>(eight_codes<kBits>(from, row + lane / 4 + 8, input)) << 8;
  } else {
    const int lane = (word - 128) / 2, first = word % 2 * 2;
    uint32_t high = 0;
    for (int odd = 0; odd < 2; ++odd) {
      const int64_t input = k + kBlockInputs * (first + odd) + 8 * (lane % 4);
      high |= (in_pairs<kBits, 2, 1, 2>(eight_codes<kBits>(from, row + lane / 4, input)) |
               in_pairs<kBits, 2, 1, 2>(eight_codes<kBits>(from, row + lane / 4 + 8, input)) << 8)
              << odd;
    }
    return high;
  }
}

template <int kBits>
__global__ void __launch_bounds__(kThreads)
    repack_codes_kernel(PackedView from, Layout layout, int64_t words, uint32_t* codes) {
  constexpr int kWords = words_per_tile(kBits);
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < words; i += int64_t{gridDim.x} * kThreads) {
    const int64_t tile = i / kWords;
    codes[i] = tile_word<kBits>(from, tile / layout.tiles * kTileRows, tile % layout.tiles * kTileInputs,
                                static_cast<int>(i % kWords));
  }
}

__global__ void __launch_bounds__(kThreads)
    repack_groups_kernel(PackedView from, Layout layout, float* scales, float* offsets) {
  const int64_t groups = layout.groups, quads = layout.quads, floats = layout.row_tiles * quads * kQuadFloats;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < floats; i += int64_t{gridDim.x} * kThreads) {
    const int64_t quad = i / kQuadFloats;
    const int lane = static_cast<int>(i % kQuadFloats / 2), half = static_cast<int>(i % 2);
    const int64_t row = quad / quads * kTileRows + lane / 4 + 8 * half, group = quad % quads * kQuad + lane % 4;
    const bool inside = row < from.out_features && group < groups;
    scales[i] = inside ? from.scales[row * groups + group] : 0.0f;
    offsets[i] = inside ? from.offsets[row * groups + group] : 0.0f;
  }
}

}  // namespace

LaunchShape repack_codes_shape(const TiledShape& shape) { return word_shape(shape.code_words()); }
LaunchShape repack_groups_shape(const TiledShape& shape) { return word_shape(shape.group_floats()); }

Status repack(const PackedView& from, uint32_t* codes, float* scales, float* offsets, Stream stream) {
  const TiledShape shape = {from.out_features, from.in_features, from.group_size, from.bits};
  const Status status = check({shape, codes, scales, offsets});
  if (status != Status::kOk) return status;
  if (from.codes == nullptr || from.scales == nullptr || from.offsets == nullptr) return Status::kBadArgument;
  const auto kernel = from.bits == 4   ? repack_codes_kernel<4>
                      : from.bits == 3 ? repack_codes_kernel<3>
                                       : repack_codes_kernel<2>;
  const Status launched =
      launch(kernel, repack_codes_shape(shape), stream, from, Layout(shape), shape.code_words(), codes);
  if (launched != Status::kOk) return launched;
  return launch(repack_groups_kernel, repack_groups_shape(shape), stream, from, Layout(shape), scales, offsets);
}

}  // namespace qalora::kernels::cuda
