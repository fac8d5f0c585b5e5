#include "support/fake_memory.h"

#include <c10/core/CPUAllocator.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <map>
#include <mutex>
#include <string>
#include <utility>

namespace qalora::test {

namespace {

constexpr uintptr_t kTag = uintptr_t{1} << 62;
constexpr uint64_t kGranule = 512;  // CUDA's allocator rounds up to it, and its tensors begin at multiples of it

uint64_t rounded(uint64_t bytes) { return (bytes + kGranule - 1) / kGranule * kGranule; }

std::string mebibytes(uint64_t bytes) { return std::to_string((bytes + (1 << 19)) >> 20) + " MiB"; }

// What lives on the device: [host address, bytes). Never destroyed: tensors of static storage may die later.
class Memory {
 public:
  static Memory& instance() {
    static auto* memory = new Memory;
    return *memory;
  }

  void add(const void* host, uint64_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const uint64_t size = rounded(bytes), used = statistics_.used_bytes;
    // The words and the numbers of CUDA's allocator.
    TORCH_CHECK_WITH(OutOfMemoryError, size <= limit_ && used <= limit_ - size,
                     "FAKE out of memory. Tried to allocate ", mebibytes(size), ". GPU 0 has a total capacity of ",
                     mebibytes(limit_), " of which ", mebibytes(limit_ - std::min(limit_, used)), " is free.");
    if (host == nullptr) return;  // only asked whether it fits
    alive_.emplace(reinterpret_cast<uintptr_t>(host), Block{bytes, pool_});
    statistics_.used_bytes += size;
    statistics_.peak_bytes = std::max(statistics_.peak_bytes, statistics_.used_bytes);
    ++statistics_.allocations;
  }

  // Forgets the memory and calls `free`, now or when the graph that it belongs to is gone.
  void release(const void* host, std::function<void()> free) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      const auto found = alive_.find(reinterpret_cast<uintptr_t>(host));
      if (found->second.pool != nullptr && found->second.pool->open) {
        found->second.pool->waiting.push_back([this, host, free = std::move(free)] { release(host, free); });
        return;
      }
      statistics_.used_bytes -= rounded(found->second.bytes);
      alive_.erase(found);
    }
    free();
  }

  // function(the block that `host` points into, if only to its end); false when there is none.
  template <typename Function>
  bool with_block(const void* host, Function function) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const uintptr_t address = reinterpret_cast<uintptr_t>(host);
    const auto after = alive_.upper_bound(address);
    if (after == alive_.begin() || address - std::prev(after)->first > std::prev(after)->second.bytes) return false;
    return function(std::prev(after)->second);
  }

  void set_pool(std::shared_ptr<Pool> pool) {
    const std::lock_guard<std::mutex> lock(mutex_);
    TORCH_CHECK(pool == nullptr || pool_ == nullptr, "a graph is being recorded already");
    pool_ = std::move(pool);
  }

  std::vector<std::function<void()>> close(Pool& pool) {
    const std::lock_guard<std::mutex> lock(mutex_);
    pool.open = false;
    return std::exchange(pool.waiting, {});
  }

  Snapshot snapshot() {
    const std::lock_guard<std::mutex> lock(mutex_);
    Snapshot contents;
    for (const auto& [address, block] : alive_) {
      const char* data = reinterpret_cast<const char*>(address);
      contents.emplace_back(reinterpret_cast<void*>(address), std::vector<char>(data, data + block.bytes));
    }
    return contents;
  }

  void restore(const Snapshot& snapshot, const Pool& since) {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (const auto& [address, block] : alive_) {
      if (block.pool.get() == &since) std::memset(reinterpret_cast<void*>(address), 0xff, block.bytes);
    }
    for (const auto& [data, content] : snapshot) {
      const auto found = alive_.find(reinterpret_cast<uintptr_t>(data));
      const bool same =
          found != alive_.end() && found->second.bytes == content.size() && found->second.pool.get() != &since;
      if (same) std::memcpy(data, content.data(), content.size());
    }
  }

  template <typename Function>
  auto locked(Function function) {
    const std::lock_guard<std::mutex> lock(mutex_);
    return function(statistics_, limit_);
  }

 private:
  std::mutex mutex_;
  struct Block {
    uint64_t bytes;
    std::shared_ptr<Pool> pool;  // of the graph that was recorded when it was allocated
  };
  std::multimap<uintptr_t, Block> alive_;  // an operator may hand out the same memory twice
  std::shared_ptr<Pool> pool_;             // of the graph that is being recorded
  FakeStatistics statistics_;
  uint64_t limit_ = uint64_t{64} << 30;
};

void release_allocated(void* host) {
  Memory::instance().release(host, [host] { std::free(host); });
}

class FakeAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    if (bytes == 0) return {nullptr, kFakeDevice};
    Memory::instance().add(nullptr, bytes);
    void* host = std::aligned_alloc(kGranule, rounded(bytes));
    TORCH_CHECK_WITH(OutOfMemoryError, host != nullptr, "no host memory for ", bytes, " bytes of the fake device");
    std::memset(host, 0xff, rounded(bytes));
    try {
      Memory::instance().add(host, bytes);
    } catch (...) {
      std::free(host);
      throw;
    }
    return {to_device_pointer(host), host, &release_allocated, kFakeDevice};
  }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    std::memcpy(to_host_pointer(to, "copy_data"), to_host_pointer(from, "copy_data"), bytes);
  }
};

void release_adopted(void* held) {
  auto* host = static_cast<c10::Storage*>(held);
  Memory::instance().release(host->data(), [host] { delete host; });
}

}  // namespace

void* to_device_pointer(void* host) {
  return host == nullptr ? nullptr : reinterpret_cast<void*>(reinterpret_cast<uintptr_t>(host) | kTag);
}

bool is_device_pointer(const void* pointer) { return (reinterpret_cast<uintptr_t>(pointer) & kTag) != 0; }

void* to_host_pointer(const void* device, const char* what) {
  if (device == nullptr) return nullptr;
  TORCH_CHECK(is_device_pointer(device), what, ": the pointer ", device, " is the host's, not the device's");
  void* host = reinterpret_cast<void*>(reinterpret_cast<uintptr_t>(device) & ~kTag);
  TORCH_CHECK(Memory::instance().with_block(host, [](const auto&) { return true; }), what, ": the pointer ", device,
              " points to nothing that lives on the device");
  return host;
}

c10::Allocator* fake_allocator() {
  static auto* allocator = new FakeAllocator;
  return allocator;
}

c10::DataPtr adopt(c10::Storage host) {
  if (host.data() == nullptr) return {nullptr, kFakeDevice};
  Memory::instance().add(host.data(), host.nbytes());
  void* data = to_device_pointer(host.mutable_data());
  return {data, new c10::Storage(std::move(host)), &release_adopted, kFakeDevice};
}

c10::Storage adopted_storage(c10::Storage host) {
  const size_t bytes = host.nbytes();
  return c10::Storage(c10::Storage::use_byte_size_t{}, bytes, adopt(std::move(host)), fake_allocator(),
                      /*resizable=*/true);
}

c10::Storage host_storage(const c10::Storage& device) {
  void* data = to_host_pointer(device.data(), "a tensor of the fake device");
  c10::DataPtr alias(
      data, new c10::Storage(device), [](void* held) { delete static_cast<c10::Storage*>(held); },
      c10::Device(c10::DeviceType::CPU));
  return c10::Storage(c10::Storage::use_byte_size_t{}, device.nbytes(), std::move(alias), c10::GetCPUAllocator(),
                      device.resizable());
}

std::shared_ptr<Pool> open_pool() {
  auto pool = std::make_shared<Pool>();
  Memory::instance().set_pool(pool);
  return pool;
}

void leave_pool() { Memory::instance().set_pool(nullptr); }

void close_pool(Pool& pool) {
  for (const auto& release : Memory::instance().close(pool)) release();
}

bool belongs_to(const Pool& pool, const void* device) {
  const void* host = to_host_pointer(device, "belongs_to");
  return Memory::instance().with_block(host, [&](const auto& block) { return block.pool.get() == &pool; });
}

Snapshot take_snapshot() { return Memory::instance().snapshot(); }
void restore(const Snapshot& snapshot, const Pool& since) { Memory::instance().restore(snapshot, since); }

void count_operator() {
  Memory::instance().locked([](FakeStatistics& statistics, uint64_t&) { ++statistics.operators; });
}

void count_kernel() {
  Memory::instance().locked([](FakeStatistics& statistics, uint64_t&) { ++statistics.kernels; });
}

void count_copy(bool to_device, uint64_t bytes) {
  Memory::instance().locked([&](FakeStatistics& statistics, uint64_t&) {
    ++(to_device ? statistics.copies_to_device : statistics.copies_to_host);
    statistics.copied_bytes += bytes;
  });
}

uint64_t fake_memory_limit() {
  return Memory::instance().locked([](FakeStatistics&, uint64_t& limit) { return limit; });
}

void set_fake_memory_limit(uint64_t bytes) {
  Memory::instance().locked([&](FakeStatistics&, uint64_t& limit) { limit = bytes; });
}

FakeMemoryLimit::FakeMemoryLimit(uint64_t bytes) : before_(fake_memory_limit()) { set_fake_memory_limit(bytes); }
FakeMemoryLimit::~FakeMemoryLimit() { set_fake_memory_limit(before_); }

FakeStatistics fake_statistics() {
  return Memory::instance().locked([](FakeStatistics& statistics, uint64_t&) { return statistics; });
}

void reset_fake_statistics() {
  Memory::instance().locked([](FakeStatistics& statistics, uint64_t&) {
    const uint64_t used = statistics.used_bytes;
    statistics = {};
    statistics.used_bytes = statistics.peak_bytes = used;
  });
}

}  // namespace qalora::test
