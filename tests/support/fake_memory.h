// The fake accelerator's memory: host memory under false addresses, counted and limited.
#pragma once

#include <c10/core/Allocator.h>
#include <c10/core/Storage.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "support/fake_device.h"

namespace qalora::test {

inline const c10::Device kFakeDevice(c10::DeviceType::PrivateUse1, 0);

// A device pointer is the host's with bit 62 set. No address looks like this on x86-64, so the processor refuses it.
void* to_device_pointer(void* host);  // null stays null
// The way back. A c10::Error, naming `what`, for a pointer that is not the device's, or that points into no living
// allocation.
void* to_host_pointer(const void* device, const char* what);
bool is_device_pointer(const void* pointer);

c10::Allocator* fake_allocator();
// The memory of a CPU storage, from now on the device's: nothing is copied, and `host` lives as long as what is
// returned.
c10::DataPtr adopt(c10::Storage host);
c10::Storage adopted_storage(c10::Storage host);
// The other way round: a CPU storage over the device's memory.
c10::Storage host_storage(const c10::Storage& device);

// Memory that is allocated while a graph is recorded stays the graph's: what is given back meanwhile or later waits for
// close_pool.
struct Pool {
  bool open = true;
  std::vector<std::function<void()>> waiting;
};
std::shared_ptr<Pool> open_pool();  // all memory comes from it until leave_pool; one at a time
void leave_pool();
void close_pool(Pool& pool);
bool belongs_to(const Pool& pool, const void* device);

// What the device's memory holds, and the way back to it; what was allocated since becomes 0xFF.
using Snapshot = std::vector<std::pair<void*, std::vector<char>>>;
Snapshot take_snapshot();
void restore(const Snapshot& snapshot, const Pool& since);

void count_operator();
void count_kernel();
void count_copy(bool to_device, uint64_t bytes);
uint64_t fake_memory_limit();

}  // namespace qalora::test
