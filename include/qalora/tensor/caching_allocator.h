// Memory of large tensors, kept for the next one of the same size.
#pragma once

#include <cstdint>

namespace qalora::tensor {

// From now on LibTorch takes the memory of CPU tensors of 1 MiB and more from here: whole mappings, so that nothing
// small pins a large block, and a freed one waits for the next tensor of its size, because fresh pages have to be
// zeroed and a layer's sizes repeat. What waits is at most a quarter of what was ever in use at once, plus 64 MiB. Safe
// for threads; call it once, early.
void use_caching_allocator();

struct CachingAllocatorStatistics {
  uint64_t used_bytes = 0;     // in tensors now
  uint64_t waiting_bytes = 0;  // freed and kept
  uint64_t reused = 0;         // allocations that found a waiting block
};
CachingAllocatorStatistics caching_allocator_statistics();

}  // namespace qalora::tensor
