// Into how many parts matmul cuts k, each a block's: so that every multiprocessor has as much to do as the others,
// where that is worth what parts cost. An estimate from bytes and published speeds, in units of the time that a block
// takes for one tile of its 256 rows, on an H100 with 4 bits: 16 KiB of codes are 0.65 us of a multiprocessor's share
// of the memory, or with 128 tokens 1.9 us of its tensor cores.
#pragma once

#include "kernels/cuda/dialect.h"

namespace qalora::kernels::cuda {

constexpr int64_t kStartTiles = 2;  // a block's first copies, which nothing covers
constexpr int64_t kSumsTiles = 3;   // 256 rows' sums through the L2 cache and back: 1.2 with 16 tokens, 3.4 with 128
constexpr int64_t kSecondLaunchTiles = 3;  // about 2 us
constexpr int64_t kFewestTiles = 4;        // of a part: the ring's stages
constexpr int64_t kMostParts = 16;

// Times the multiprocessors. The busiest one has `rounds` blocks; what parts add is spread over all. Tokens are not
// asked for, as `parts` may not depend on them: with more than a block's 128 there are more rounds, each part of them
// as long.
inline int64_t cost_of_parts(int64_t parts, int64_t blocks, int64_t tiles, int64_t multiprocessors) {
  const int64_t rounds = tiles_over(parts * blocks, multiprocessors);
  const int64_t adding = parts == 1 ? 0 : parts * blocks * kSumsTiles + multiprocessors * kSecondLaunchTiles;
  return rounds * (tiles_over(tiles, parts) + kStartTiles) * multiprocessors + adding;
}

// blocks: over the rows of W. Of equally cheap numbers the smallest, and one where others would gain less than a tenth:
// the estimate is no better than that, and parts need a workspace.
inline int64_t cheapest_parts(int64_t blocks, int64_t tiles, int64_t multiprocessors) {
  const int64_t whole = cost_of_parts(1, blocks, tiles, multiprocessors);
  int64_t best = 1, least = whole;
  for (int64_t parts = 2; parts <= kMostParts && parts * kFewestTiles <= tiles; ++parts) {
    const int64_t cost = cost_of_parts(parts, blocks, tiles, multiprocessors);
    if (cost < least) best = parts, least = cost;
  }
  return 10 * least < 9 * whole ? best : 1;
}

}  // namespace qalora::kernels::cuda
