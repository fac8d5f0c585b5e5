// y = x . W^T for a few to a few hundred rows ("tokens") of x, on tensor cores, straight from the codes.
//
// A block has 16 row tiles, two a warp, and 16 to 128 tokens. A warp's codes go from global memory to its registers and
// are nobody else's; what the warps share, x, goes through a ring of shared memory, [tokens][128 inputs] a stage,
// filled by cp.async. Two row tiles a warp, because then 512 bytes of x feed four mma of 16 x 8 x 16 and shared memory
// is half busy when the tensor cores of an H100 are full.
//
// Not ldmatrix: of a row's four 16-byte chunks it would give a lane two inputs each, while the weights' order (tile.h)
// wants all eight of one chunk. A plain 16-byte load a lane gives just those for the same traffic. Chunk c of token n
// lies at c ^ (4 * (n % 2)): the 8 lanes that read together hold two neighbouring tokens and four neighbouring chunks,
// and so they touch all 32 banks once.
//
// fp32 sums of 32 inputs are scaled by their group's scale in fp32. The zero term, sum_g b_c pool(x), runs on tensor
// cores too, as b_hi p_hi + b_hi p_lo + b_lo p_hi of bf16 halves: what is left out is 2^-16 of each product.
//
// k is shared among `parts` blocks where the rows of W alone would leave multiprocessors idle; their fp32 sums are
// added in order by a second small kernel. `parts` and the order of every sum depend on the shape and the device's
// number of multiprocessors, not on how many tokens there are: a token's bits do not depend on those beside it.
//
// On Hopper mma.sync reaches about 62 % of what wgmma does, which dense libraries use there. With 128 tokens the
// products take as long as the codes, so a gain of 1.4 over dense bf16 is doubtful on an H100 at that number, and only
// there.
#include "kernels/cuda/linear.h"
#include "kernels/cuda/parts.h"
#include "kernels/cuda/products.h"

namespace qalora::kernels::cuda {

namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarp;
constexpr int kTiles = 2;  // row tiles a warp
constexpr int kColumns = 8;
constexpr int kChunk = 8;  // inputs in 16 bytes
constexpr int kRowChunks = kTileInputs / kChunk;
constexpr int kAddThreads = 128;
constexpr int kAddValues = 4;              // a thread's, where they lie so that they can be moved at once
constexpr int64_t kMostAddTokens = 65535;  // of a grid; blocks stride over more

// Cuts `count` things into parts that differ by one at most, without dividing on the device.
struct Shares {
  int each, more;  // the first `more` parts have one more
  Shares(int64_t count, int64_t parts) : each(static_cast<int>(count / parts)), more(static_cast<int>(count % parts)) {}
  __device__ __forceinline__ int begin(int part) const { return part * each + (part < more ? part : more); }
};

struct Multiplying {
  Layout layout;
  Shares tiles, zero_steps;  // of k, among the parts
  Activations x;
  const uint32_t* codes;
  const float* scales;
  const float* offsets;
  Outputs y;
  int64_t next_codes, next_floats;  // from a row tile to the next
  float* workspace;                 // [parts, rows, out_features], when parts > 1
  uint32_t magic;
};

// Three stages of 128 tokens are 96 KiB: what a block may have on sm_86 and sm_89.
__host__ __device__ constexpr int stages_of(int tokens) { return tokens > 64 ? 3 : 4; }

struct Place {
  int lane, warp, first_token;
  int row_tile;  // the warp's first
  bool next;     // there is a second; else the first is read again and its sums go nowhere

  __device__ __forceinline__ Place(const Layout& layout, int tokens)
      : lane(static_cast<int>(threadIdx.x % kWarp)),
        warp(static_cast<int>(threadIdx.x / kWarp)),
        first_token(static_cast<int>(blockIdx.y) * tokens) {
    const int wanted = (static_cast<int>(blockIdx.x) * kWarps + warp) * kTiles, last = layout.row_tiles - 1;
    row_tile = wanted < last ? wanted : last;
    next = row_tile < last;
  }
};

// x's inputs of one tile to a stage of shared memory; zeros for tokens and inputs that are none. A thread has one chunk
// of every 16th token.
template <int kTokens>
__device__ __forceinline__ void stage_inputs(const Multiplying& work, int first_token, int tile, uint4* stage) {
  constexpr int kStep = kThreads / kRowChunks;
  const int first = static_cast<int>(threadIdx.x) / kRowChunks, chunk = static_cast<int>(threadIdx.x) % kRowChunks;
  const int input = tile * kTileInputs + chunk * kChunk;
  uint4* to = stage + first * kRowChunks + (chunk ^ (first % 2 * 4));
  const uint16_t* from = work.x.data + (first_token + first) * work.x.stride + input;
#pragma unroll
  for (int token = 0; token < kTokens; token += kStep, from += kStep * work.x.stride) {
    const bool inside = first_token + first + token < work.x.rows && input < work.layout.in_features;
    cp_async16(to + token * kRowChunks, inside ? from : work.x.data, inside);
  }
}

template <int kBits>
struct Ahead {
  LaneCodes<kBits> codes[kTiles];
  float2 scales[kTiles];
};

template <int kBits>
__device__ __forceinline__ void load_ahead(const Multiplying& work, const Place& place, int tile, int quad,
                                           Ahead<kBits>& ahead) {
  const uint32_t* codes = work.codes + work.layout.words_at(place.row_tile, tile, kBits);
  const float* scales = work.scales + work.layout.floats_at(place.row_tile, quad);
  load_codes(codes, place.lane, ahead.codes[0]);
  load_codes(codes + (place.next ? work.next_codes : 0), place.lane, ahead.codes[1]);
  ahead.scales[0] = load_quad(scales, place.lane);
  ahead.scales[1] = load_quad(scales + (place.next ? work.next_floats : 0), place.lane);
}

// sums: [row tile][8 tokens][as mma's d]. reload() is called when `ahead` is used up: a quarter of the work is then
// still to come. The blocks are a loop, not unrolled: one block's 170 to 390 instructions keep everything busy, and
// four of them made the compiler hold four blocks' operands at once.
template <typename Element, int kBits, int kTokens, typename Reload>
__device__ __forceinline__ void multiply_tile(Ahead<kBits>& ahead, const uint4* stage, GroupWalk& group, uint32_t magic,
                                              int lane, float (&sums)[kTiles][kTokens / kColumns][4], Reload reload) {
  const int odd = lane / 4 % 2;
  const uint4* own = stage + lane / 4 * kRowChunks + lane % 4;
#pragma unroll 1
  for (int block = 0; block < kTileBlocks; ++block) {
    const uint4* x = own + (block ^ odd) * 4;
    uint32_t first[kTiles][4], second[kTiles][4];
    float low[kTiles], high[kTiles];
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      unpack_operands<Element, kBits, 0>(ahead.codes[i], magic, first[i], second[i]);
      next_block(block, ahead.codes[i]);
      low[i] = of_slot(ahead.scales[i].x, lane, group.slot);
      high[i] = of_slot(ahead.scales[i].y, lane, group.slot);
    }
    if (block == kTileBlocks - 1) reload();
#pragma unroll
    for (int column = 0; column < kTokens / kColumns; ++column) {
      const uint4 inputs = x[column * kColumns * kRowChunks];
      const uint32_t x_first[2] = {inputs.x, inputs.y}, x_second[2] = {inputs.z, inputs.w};
      float part[kTiles][4] = {};
#pragma unroll
      for (int i = 0; i < kTiles; ++i) mma_m16n8k16<Element>(part[i], first[i], x_first);
#pragma unroll
      for (int i = 0; i < kTiles; ++i) mma_m16n8k16<Element>(part[i], second[i], x_second);
#pragma unroll
      for (int i = 0; i < kTiles; ++i) add_scaled(part[i], low[i], high[i], sums[i][column]);
    }
    group.next();
  }
}

// ---- Zero term
// ---------------------------------------------------------------------------------------------------------------- 16
// groups are one mma step: the k slots (2t, 2t + 1, 2t + 8, 2t + 9) of lane l stand for group t of four quads, so
// offsets and scales come as they lie, and of pool(x) a lane takes the same four groups. All warps need the same halves
// of pool(x): the block makes them once, in a stage of the ring that no copy is under way to, [two steps][tokens][4
// groups t] of (high, low) of four quads.
constexpr int kZeroQuads = 4;

__device__ __forceinline__ void split(float first, float second, uint32_t& high, uint32_t& low) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
  const float2 kept = __bfloat1622float2(pair);
  high = word_of(pair);
  low = word_of(__floats2bfloat162_rn(first - kept.x, second - kept.y));
}

template <int kBits>
__device__ __forceinline__ void zero_operands(const Multiplying& work, int row_tile, int quad, int lane,
                                              uint32_t (&high)[4], uint32_t (&low)[4]) {
  float rows[2][kZeroQuads];
#pragma unroll
  for (int i = 0; i < kZeroQuads; ++i) {
    const int last = work.layout.quads - 1;  // read again for quads that are none: their sums are zeros
    const int64_t place = work.layout.floats_at(row_tile, quad + i < last ? quad + i : last);
    const float2 scales = load_quad(work.scales + place, lane), offsets = load_quad(work.offsets + place, lane);
    rows[0][i] = centred_offset<kBits>(scales.x, offsets.x);
    rows[1][i] = centred_offset<kBits>(scales.y, offsets.y);
  }
  split(rows[0][0], rows[0][1], high[0], low[0]);
  split(rows[1][0], rows[1][1], high[1], low[1]);
  split(rows[0][2], rows[0][3], high[2], low[2]);
  split(rows[1][2], rows[1][3], high[3], low[3]);
}

template <int kTokens>
__device__ __forceinline__ void stage_sums(const Multiplying& work, int first_token, int quad, uint4* halves) {
  for (int i = static_cast<int>(threadIdx.x); i < kTokens * kQuad; i += kThreads) {
    const int token = first_token + i / kQuad;
    float pooled[kZeroQuads];
#pragma unroll
    for (int j = 0; j < kZeroQuads; ++j) {
      const int group = (quad + j) * kQuad + i % kQuad;
      const bool inside = token < work.x.rows && group < work.layout.groups;
      pooled[j] = inside ? __ldg(work.x.sums + int64_t{token} * work.layout.groups + group) : 0.0f;
    }
    uint4 words;
    split(pooled[0], pooled[1], words.x, words.z);
    split(pooled[2], pooled[3], words.y, words.w);
    halves[i] = words;
  }
}

template <int kBits, int kTokens>
__device__ __forceinline__ void add_zero_term(const Multiplying& work, const Place& place, int quad,
                                              const uint4* halves, float (&sums)[kTiles][kTokens / kColumns][4]) {
  // One row tile after the other: operands of both beside the sums would be more than there are registers.
#pragma unroll
  for (int i = 0; i < kTiles; ++i) {
    uint32_t high[4], low[4];
    zero_operands<kBits>(work, place.row_tile + (place.next ? i : 0), quad, place.lane, high, low);
#pragma unroll
    for (int column = 0; column < kTokens / kColumns; ++column) {
      const uint4 words = halves[column * kWarp + place.lane];
      const uint32_t x_high[2] = {words.x, words.y}, x_low[2] = {words.z, words.w};
      mma_m16n8k16<__nv_bfloat16>(sums[i][column], high, x_high);
      mma_m16n8k16<__nv_bfloat16>(sums[i][column], high, x_low);
      mma_m16n8k16<__nv_bfloat16>(sums[i][column], low, x_high);
    }
  }
}

// ---- The kernel
// ---------------------------------------------------------------------------------------------------------------
__device__ __forceinline__ void store_sum(const Multiplying& work, int token, int64_t row, float sum) {
  if (token >= work.x.rows || row >= work.layout.out_features) return;
  if (work.workspace == nullptr) work.y.store(token, row, sum);
  else work.workspace[(int64_t{blockIdx.z} * work.x.rows + token) * work.layout.out_features + row] = sum;
}

// Each warp turns a row tile's sums round in its own part of the ring, [tokens][16 rows], so that neighbouring lanes
// store neighbouring rows of W: whole 32-byte sectors. 20 floats a token keep the lanes of a store to shared memory in
// different banks.
constexpr int kTurnStride = 20;

template <int kTokens>
__device__ __forceinline__ void store_sums(const Multiplying& work, const Place& place, float* ring,
                                           const float (&sums)[kTiles][kTokens / kColumns][4]) {
  static_assert(kWarps * kTurnStride * 4 <= stages_of(kTokens) * kTileInputs * 2, "the turned sums fit into the ring");
  float* turned = ring + place.warp * (kTokens * kTurnStride);
  float* own = turned + place.lane % 4 * 2 * kTurnStride + place.lane / 4;
#pragma unroll
  for (int i = 0; i < kTiles; ++i) {
    __syncwarp();
#pragma unroll
    for (int column = 0; column < kTokens / kColumns; ++column) {
      float* to = own + column * kColumns * kTurnStride;
      to[0] = sums[i][column][0], to[kTurnStride] = sums[i][column][1];
      to[8] = sums[i][column][2], to[kTurnStride + 8] = sums[i][column][3];
    }
    __syncwarp();
    const int tile = (static_cast<int>(blockIdx.x) * kWarps + place.warp) * kTiles + i, row = place.lane % kTileRows;
    for (int token = place.lane / kTileRows; token < kTokens; token += kWarp / kTileRows) {
      store_sum(work, place.first_token + token, int64_t{tile} * kTileRows + row, turned[token * kTurnStride + row]);
    }
  }
}

// kDepth tiles of codes are in registers or under way: one for 128 tokens, whose sums leave no room for more and whose
// products take as long as the memory.
template <int kBits, typename Element, int kTokens, int kDepth>
__global__ void __launch_bounds__(kThreads, 1) matmul_kernel(Multiplying work) {
  constexpr int kStages = stages_of(kTokens);
  const Layout& layout = work.layout;
  const Place place(layout, kTokens);
  const int part = static_cast<int>(blockIdx.z), begin = work.tiles.begin(part), end = work.tiles.begin(part + 1);
  uint4* ring = dynamic_shared<uint4>();
  const auto fetch = [&](int tile, int stage) {
    if (tile < end) stage_inputs<kTokens>(work, place.first_token, tile, ring + stage * (kTokens * kRowChunks));
    cp_async_commit();  // also of nothing, so that counting groups counts tiles
  };
#pragma unroll 1
  for (int stage = 0; stage < kStages - 1; ++stage) fetch(begin + stage, stage);

  Ahead<kBits> ahead[kDepth];
  QuadWalk coming(layout.blocks_per_group, begin);
  const auto load = [&](int tile, Ahead<kBits>& slot) {  // called for one tile after the other
    if (tile < end) load_ahead(work, place, tile, coming.quad, slot);
    coming.next();
  };

  const auto load_first = [&] {
#pragma unroll
    for (int slot = 0; slot < kDepth; ++slot) load(begin + slot, ahead[slot]);
  };
  if (kTokens <= 64) load_first();  // with 128 tokens' sums and the zero term's operands there is no room for codes

  float sums[kTiles][kTokens / kColumns][4] = {};
  uint4* halves = ring + (kStages - 1) * (kTokens * kRowChunks);
#pragma unroll 1
  for (int step = work.zero_steps.begin(part); step < work.zero_steps.begin(part + 1); ++step) {
    uint4* now = halves + step % 2 * (kTokens * kQuad);
    stage_sums<kTokens>(work, place.first_token, step * kZeroQuads, now);
    __syncthreads();  // one a step will do: the other half is what slower warps still read
    add_zero_term<kBits, kTokens>(work, place, step * kZeroQuads, now, sums);
  }
  if (kTokens > 64) load_first();
  int stage = 0;
  GroupWalk group(layout.blocks_per_group, begin * kTileBlocks);
  for (int base = begin; base < end; base += kDepth) {
#pragma unroll
    for (int slot = 0; slot < kDepth; ++slot) {
      const int tile = base + slot;
      if (tile >= end) break;
      cp_async_wait<kStages - 2>();
      __syncthreads();  // everybody's copies of this tile are there, and nobody reads the tile before it any more
      fetch(tile + kStages - 1, stage > 0 ? stage - 1 : kStages - 1);
      multiply_tile<Element, kBits, kTokens>(ahead[slot], ring + stage * (kTokens * kRowChunks), group, work.magic,
                                             place.lane, sums, [&] { load(tile + kDepth, ahead[slot]); });
      stage = stage + 1 < kStages ? stage + 1 : 0;
    }
  }
  __syncthreads();  // the last tiles of x have been read
  store_sums<kTokens>(work, place, dynamic_shared<float>(), sums);
}

// y = the parts' sums, in order. workspace: [parts, rows, out_features]. Blocks: [out_features in kValues a
// thread][tokens].
template <int kValues>
__global__ void __launch_bounds__(kAddThreads)
    add_parts_kernel(const float* workspace, int parts, int64_t rows, int64_t out_features, Outputs y) {
  const int64_t column = (int64_t{blockIdx.x} * kAddThreads + threadIdx.x) * kValues, part_size = rows * out_features;
  if (column >= out_features) return;
  for (int64_t token = blockIdx.y; token < rows; token += gridDim.y) {
    const float* from = workspace + token * out_features + column;
    if constexpr (kValues == 1) {
      float sum = 0;
      for (int part = 0; part < parts; ++part) sum += from[part * part_size];
      y.store(token, column, sum);
    } else {
      float4 sum = make_float4(0, 0, 0, 0);
      for (int part = 0; part < parts; ++part) {
        const float4 more = *reinterpret_cast<const float4*>(from + part * part_size);
        sum.x += more.x, sum.y += more.y, sum.z += more.z, sum.w += more.w;
      }
      y.store_four(token, column, sum);
    }
  }
}

// Whether four neighbours can be moved at once: in the workspace and in y, whose rows must begin as aligned as y does.
bool adds_fours(const void* workspace, int64_t out_features, const Outputs& y) {
  return out_features % kAddValues == 0 && aligned(workspace, 16) && y.stride % kAddValues == 0 &&
         aligned(y.data, kAddValues * bytes_of(y.type));
}

Status add_parts(const float* workspace, int parts, int64_t rows, int64_t out_features, const Outputs& y,
                 Stream stream) {
  const bool fours = adds_fours(workspace, out_features, y);
  const LaunchShape shape = add_parts_shape(out_features, rows, fours);
  if (fours) return launch(add_parts_kernel<kAddValues>, shape, stream, workspace, parts, rows, out_features, y);
  return launch(add_parts_kernel<1>, shape, stream, workspace, parts, rows, out_features, y);
}

int tokens_a_block(int64_t rows) { return rows <= 16 ? 16 : rows <= 32 ? 32 : rows <= 64 ? 64 : 128; }

template <int kBits, typename Element>
Status launch_tokens(Multiplying work, const LaunchShape& shape, Stream stream) {
  work.magic = Numbers<Element>::kMagic;
  switch (tokens_a_block(work.x.rows)) {
    case 16: return launch(matmul_kernel<kBits, Element, 16, 2>, shape, stream, work);
    case 32: return launch(matmul_kernel<kBits, Element, 32, 2>, shape, stream, work);
    case 64: return launch(matmul_kernel<kBits, Element, 64, 2>, shape, stream, work);
    default: return launch(matmul_kernel<kBits, Element, 128, 1>, shape, stream, work);
  }
}

int64_t blocks_of_rows(const TiledShape& shape) { return tiles_over(shape.row_tiles(), kWarps * kTiles); }

int64_t parts_of(const TiledShape& shape, int multiprocessors) {
  return cheapest_parts(blocks_of_rows(shape), shape.input_tiles(), multiprocessors);
}

}  // namespace

LaunchShape matmul_shape(const TiledShape& shape, int64_t rows, int multiprocessors) {
  const int tokens = tokens_a_block(rows);
  const dim3 grid(static_cast<unsigned>(blocks_of_rows(shape)), static_cast<unsigned>(tiles_over(rows, tokens)),
                  static_cast<unsigned>(parts_of(shape, multiprocessors)));
  return {grid, dim3(kThreads), int64_t{stages_of(tokens)} * tokens * kTileInputs * 2};
}

LaunchShape add_parts_shape(int64_t out_features, int64_t rows, bool fours) {
  const int64_t blocks = tiles_over(out_features, kAddThreads * (fours ? kAddValues : 1));
  return {dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(rows < kMostAddTokens ? rows : kMostAddTokens)),
          dim3(kAddThreads), 0};
}

int64_t matmul_workspace_bytes(const TiledShape& shape, int64_t rows, int multiprocessors) {
  if (!supports(shape) || rows <= 0) return 0;
  const int64_t parts = parts_of(shape, multiprocessors);
  return parts > 1 ? parts * rows * shape.out_features * 4 : 0;
}

Status matmul(const TiledView& weight, const void* x, int64_t x_stride, Type x_type, const float* sums, int64_t rows,
              void* y, int64_t y_stride, Type y_type, void* workspace, int multiprocessors, Stream stream) {
  const Status status = check_product(weight, x, x_stride, x_type, sums, rows, y, y_stride, y_type);
  if (status != Status::kOk || rows == 0) return status;
  const LaunchShape shape = matmul_shape(weight.shape, rows, multiprocessors);
  if (shape.grid.y > 65535) return Status::kUnsupported;
  const auto parts = static_cast<int>(shape.grid.z);
  if (parts > 1 && !aligned(workspace, 4)) return Status::kBadArgument;
  const Outputs outputs = {y, y_stride, y_type};
  const Layout layout(weight.shape);
  const Multiplying work = {layout,
                            Shares(layout.tiles, parts),
                            Shares(tiles_over(layout.quads, kZeroQuads), parts),
                            Activations(x, x_stride, sums, rows),
                            weight.codes,
                            weight.scales,
                            weight.offsets,
                            outputs,
                            int64_t{layout.tiles} * words_per_tile(weight.shape.bits),
                            int64_t{layout.quads} * kQuadFloats,
                            parts > 1 ? static_cast<float*>(workspace) : nullptr,
                            0};
  const Status launched = by_bits_and_type(weight.shape.bits, x_type, [&]<int kBits, typename Element>() {
    return launch_tokens<kBits, Element>(work, shape, stream);
  });
  if (launched != Status::kOk || parts == 1) return launched;
  return add_parts(work.workspace, parts, rows, weight.shape.out_features, outputs, stream);
}

}  // namespace qalora::kernels::cuda
