// The fake accelerator's memory: host memory under false addresses, counted and limited.
#pragma once

#include <c10/core/Allocator.h>
#include <c10/core/Storage.h>

#include <cstddef>
#include <cstdint>

#include "support/fake_device.h"

namespace qalora::test {

inline const c10::Device kFakeDevice(c10::DeviceType::PrivateUse1, 0);

// A device pointer is the host's with bit 62 set. No address looks like this on x86-64, so the processor refuses it.
void* to_device_pointer(void* host);  // null stays null
// The way back. A c10::Error, naming `what`, for a pointer that is not the device's, or that points into no living allocation.
void* to_host_pointer(const void* device, const char* what);
bool is_device_pointer(const void* pointer);

c10::Allocator* fake_allocator();
// The memory of a CPU storage, from now on the device's: nothing is copied, and `host` lives as long as what is returned.
c10::DataPtr adopt(c10::Storage host);
c10::Storage adopted_storage(c10::Storage host);
// The other way round: a CPU storage over the device's memory.
c10::Storage host_storage(const c10::Storage& device);

void count_operator();
void count_copy(bool to_device, uint64_t bytes);
uint64_t fake_memory_limit();

}  // namespace qalora::test
