// y = x . W^T for 1 to 8 rows of x, straight from the codes and bound by their bytes. The weights are the mma's A
// operand (16 of their rows), x its B operand, whose 8 columns are the rows of x (what is no row is zero): the tensor
// cores do the multiplying, and a lane is left with one mask and one packed subtraction for two weights. fp32 sums of
// each block of 32 inputs are scaled by the group's scale in fp32; the zero term, sum_g b_c pool(x), is added in fp32
// apart from them (kernels.md 1.3).
//
// A block owns one or two row tiles; its warps share k among them, each keeps the codes of the next tiles in flight in
// registers, and their sums are added in the warps' order: the same bits every time, and a row's bits do not depend on
// the rows beside it. Row tiles are independent, so q/k/v or gate/up run as one matvec when their rows lie behind one
// another in one TiledView.
#include "kernels/cuda/linear.h"
#include "kernels/cuda/products.h"

namespace qalora::kernels::cuda {

namespace {

constexpr int kWarps = 8;
constexpr int kColumns = 8;  // of an mma's B operand

struct Walking {
  Layout layout;
  Activations x;
  const uint32_t* codes;
  const float* scales;
  const float* offsets;
  Outputs y;
  uint32_t magic;
};

// What a lane has of one tile, on its way from memory.
template <int kBits>
struct Ahead {
  LaneCodes<kBits> codes;
  float2 scales, offsets;
};

// A lane's part of a tile of x: column lane / 4, its 8 inputs of each block; and, for the groups of a quad, pool(x) of
// group lane % 4.
template <int kRows>
struct Inputs {
  uint4 blocks[kTileBlocks];
  float sums[kRows];
};

// codes, scales, offsets: of the tile and its quad.
template <int kBits>
__device__ __forceinline__ void load_ahead(const uint32_t* codes, const float* scales, const float* offsets, int lane,
                                           Ahead<kBits>& ahead) {
  load_codes(codes, lane, ahead.codes);
  ahead.scales = load_quad(scales, lane);
  ahead.offsets = load_quad(offsets, lane);
}

// x: the lane's inputs of the tile. What is no row of x is read from the last one: nobody asks for that column's
// products. with_sums: the tile is its quad's first, which adds the quad's zero term.
template <int kRows>
__device__ __forceinline__ void load_inputs(const Walking& work, const uint16_t* x, int tile, int quad, bool with_sums,
                                            int lane, Inputs<kRows>& inputs) {
  const uint4* from = reinterpret_cast<const uint4*>(x);
  const int blocks = work.layout.in_features / kBlockInputs - tile * kTileBlocks;
  if (blocks >= kTileBlocks) {  // all but a row's last tile: no question a block
#pragma unroll
    for (int block = 0; block < kTileBlocks; ++block) inputs.blocks[block] = __ldg(from + block * (kBlockInputs / 8));
  } else {
#pragma unroll
    for (int block = 0; block < kTileBlocks; ++block) {
      inputs.blocks[block] = block < blocks ? __ldg(from + block * (kBlockInputs / 8)) : make_uint4(0, 0, 0, 0);
    }
  }
  const int group = quad * kQuad + lane % 4;
#pragma unroll
  for (int row = 0; row < kRows; ++row) {
    const bool inside = with_sums && row < work.x.rows && group < work.layout.groups;
    inputs.sums[row] = inside ? __ldg(work.x.sums + int64_t{row} * work.layout.groups + group) : 0.0f;
  }
}

// A lane's sums of one row tile. products: as mma's d. zero: [row r or r + 8][row of x], of the lane's own groups.
template <int kRows>
struct Sums {
  float products[4];
  float zero[2][kRows];
};

template <typename Element, int kBits, int kRows>
__device__ __forceinline__ void multiply_tile(const Ahead<kBits>& ahead, const Inputs<kRows>& inputs, GroupWalk& group,
                                              uint32_t magic, int lane, Sums<kRows>& sums) {
  each_block([&](auto block) {
    constexpr int kBlock = decltype(block)::value;
    uint32_t first[4], second[4];
    unpack_operands<Element, kBits, kBlock>(ahead.codes, magic, first, second);
    const uint4 x = inputs.blocks[kBlock];
    const uint32_t x_first[2] = {x.x, x.y}, x_second[2] = {x.z, x.w};
    float part[4] = {0, 0, 0, 0};
    mma_m16n8k16<Element>(part, first, x_first);
    mma_m16n8k16<Element>(part, second, x_second);
    add_scaled(part, of_slot(ahead.scales.x, lane, group.slot), of_slot(ahead.scales.y, lane, group.slot),
               sums.products);
    group.next();
  });
  const float low = centred_offset<kBits>(ahead.scales.x, ahead.offsets.x),
              high = centred_offset<kBits>(ahead.scales.y, ahead.offsets.y);
#pragma unroll
  for (int row = 0; row < kRows; ++row) {
    sums.zero[0][row] = __fmaf_rn(low, inputs.sums[row], sums.zero[0][row]);
    sums.zero[1][row] = __fmaf_rn(high, inputs.sums[row], sums.zero[1][row]);
  }
}

// Adds the zero term of the four lanes of a row, and leaves each with that of its own two columns of d.
template <int kRows>
__device__ __forceinline__ void join_zero(int lane, Sums<kRows>& sums) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      float value = sums.zero[half][row];
      value += __shfl_xor_sync(kAllLanes, value, 1);
      value += __shfl_xor_sync(kAllLanes, value, 2);
      if (row / 2 == lane % 4) sums.products[2 * half + row % 2] += value;
    }
  }
}

// The warps' sums in shared memory, [kWarps][kTiles][row of W: 16][row of x: 8], added in the warps' order and written.
template <int kTiles>
__device__ __forceinline__ void join_warps(const Walking& work, int first_tile, const float* parts) {
  constexpr int kValues = kTiles * kTileRows * kColumns;
  for (int i = static_cast<int>(threadIdx.x); i < kValues; i += kWarps * kWarp) {
    const int tile = i / (kTileRows * kColumns), column = i / kTileRows % kColumns, row = i % kTileRows;
    float sum = 0;
    for (int warp = 0; warp < kWarps; ++warp)
      sum += parts[(warp * kTiles + tile) * kTileRows * kColumns + row * kColumns + column];
    const int64_t out = (int64_t{first_tile} + tile) * kTileRows + row;
    if (column < work.x.rows && out < work.layout.out_features) work.y.store(column, out, sum);
  }
}

// kRows: the rows of x that there may be. kTiles row tiles a block share what is loaded of x; kDepth tiles of codes are
// under way.
template <int kBits, typename Element, int kRows, int kTiles, int kDepth>
__global__ void __launch_bounds__(kWarps* kWarp, kTiles == 1 ? 2 : 1) matvec_kernel(Walking work) {
  const Layout& layout = work.layout;
  const int lane = static_cast<int>(threadIdx.x % kWarp), warp = static_cast<int>(threadIdx.x / kWarp);
  const int first_tile = static_cast<int>(blockIdx.x) * kTiles;
  const int begin = static_cast<int>(int64_t{layout.tiles} * warp / kWarps);
  const int end = static_cast<int>(int64_t{layout.tiles} * (warp + 1) / kWarps);
  Ahead<kBits> ahead[kDepth][kTiles];
  Sums<kRows> sums[kTiles] = {};
  QuadWalk coming(layout.blocks_per_group, begin), quad = coming;
  // Pointers that run with the tiles: a tile's 215 instructions (sm_90, one row, 4 bits) are 70 % of what an H100's
  // multiprocessors issue while its memory brings the tile.
  const uint32_t* codes = work.codes + layout.words_at(first_tile, begin, kBits);
  const float* const scales = work.scales + layout.floats_at(first_tile, 0);
  const float* const offsets = work.offsets + layout.floats_at(first_tile, 0);
  const bool second =
      first_tile + 1 < layout.row_tiles;  // if there is none, the first is read again and its sums go nowhere
  const int64_t next_codes = second ? layout.words_at(1, 0, kBits) : 0,
                next_floats = second ? layout.floats_at(1, 0) : 0;
  const auto load = [&](int tile, Ahead<kBits>(&slot)[kTiles]) {
    if (tile >= end) return;
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      const int64_t place = i * next_floats + coming.quad * kQuadFloats;
      load_ahead(codes + i * next_codes, scales + place, offsets + place, lane, slot[i]);
    }
    codes += words_per_tile(kBits);
    coming.next();
  };
#pragma unroll
  for (int slot = 0; slot < kDepth; ++slot) load(begin + slot, ahead[slot]);
  // x comes from the L1 or L2 cache: a tile ahead, too, for one row. With more there are no registers for that (4 rows'
  // codes of 4 bits would spill on sm_80), but other warps work meanwhile, and the codes' loads go on.
  constexpr bool kInputsAhead = kRows == 1;
  static_assert(!kInputsAhead || kDepth % 2 == 0, "two places take turns");
  Inputs<kRows> inputs[2];
  const int column = lane / 4 < work.x.rows ? lane / 4 : work.x.rows - 1;
  const uint16_t* x = work.x.data + column * work.x.stride + begin * kTileInputs + 8 * (lane % 4);
  const auto fetch = [&](int tile, Inputs<kRows>& to) {
    if (tile >= end) return;
    load_inputs(work, x, tile, quad.quad, quad.in_quad == 0, lane, to);
    x += kTileInputs;
    quad.next();
  };
  if (kInputsAhead) fetch(begin, inputs[0]);
  GroupWalk group(layout.blocks_per_group, begin * kTileBlocks);
  for (int base = begin; base < end; base += kDepth) {
#pragma unroll
    for (int slot = 0; slot < kDepth; ++slot) {
      const int tile = base + slot;
      if (tile >= end) break;
      fetch(tile + kInputsAhead, inputs[(slot + kInputsAhead) % 2]);
      const GroupWalk first = group;  // the row tiles walk alike
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
        group = first;
        multiply_tile<Element>(ahead[slot][i], inputs[slot % 2], group, work.magic, lane, sums[i]);
      }
      load(tile + kDepth, ahead[slot]);
    }
  }
  float* parts = dynamic_shared<float>();
#pragma unroll
  for (int i = 0; i < kTiles; ++i) {
    join_zero(lane, sums[i]);
    float* to = parts + (warp * kTiles + i) * kTileRows * kColumns + lane / 4 * kColumns + lane % 4 * 2;
    *reinterpret_cast<float2*>(to) = make_float2(sums[i].products[0], sums[i].products[1]);
    *reinterpret_cast<float2*>(to + 8 * kColumns) = make_float2(sums[i].products[2], sums[i].products[3]);
  }
  __syncthreads();
  join_warps<kTiles>(work, first_tile, parts);
}

// Row tiles a block: two where that halves what more than four rows of x cost beside the codes.
int tiles_a_block(int64_t rows) { return rows > 4 ? 2 : 1; }

template <int kBits, typename Element>
Status launch_rows(Walking work, const LaunchShape& shape, Stream stream) {
  work.magic = Numbers<Element>::kMagic;
  if (work.x.rows == 1) return launch(matvec_kernel<kBits, Element, 1, 1, 4>, shape, stream, work);
  if (work.x.rows <= 4) return launch(matvec_kernel<kBits, Element, 4, 1, 3>, shape, stream, work);
  return launch(matvec_kernel<kBits, Element, 8, 2, 2>, shape, stream, work);
}

}  // namespace

LaunchShape matvec_shape(const TiledShape& shape, int64_t rows) {
  const int tiles = tiles_a_block(rows);
  return {dim3(static_cast<unsigned>(tiles_over(shape.row_tiles(), tiles))), dim3(kWarps * kWarp),
          int64_t{kWarps} * tiles * kTileRows * kColumns * 4};
}

Status matvec(const TiledView& weight, const void* x, int64_t x_stride, Type x_type, const float* sums, int64_t rows,
              void* y, int64_t y_stride, Type y_type, Stream stream) {
  const Status status = check_product(weight, x, x_stride, x_type, sums, rows, y, y_stride, y_type);
  if (status != Status::kOk || rows == 0) return status;
  if (rows > kMatvecRows) return Status::kUnsupported;
  const Walking work = {Layout(weight.shape),
                        Activations(x, x_stride, sums, rows),
                        weight.codes,
                        weight.scales,
                        weight.offsets,
                        {y, y_stride, y_type},
                        0};
  const LaunchShape shape = matvec_shape(weight.shape, rows);
  return by_bits_and_type(weight.shape.bits, x_type, [&]<int kBits, typename Element>() {
    return launch_rows<kBits, Element>(work, shape, stream);
  });
}

}  // namespace qalora::kernels::cuda
