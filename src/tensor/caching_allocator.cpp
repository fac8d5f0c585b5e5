#include "qalora/tensor/caching_allocator.h"

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <iterator>
#include <list>
#include <mutex>
#include <unordered_map>

namespace qalora::tensor {

namespace {

constexpr size_t kSmallest = size_t{1} << 20;  // smaller ones are malloc's business
constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kAlwaysKept = size_t{64} << 20;

// Sizes are rounded up by at most an eighth, so that nearly equal ones can stand in for each other.
size_t rounded(size_t bytes) {
  size_t unit = kSmallest / 8;
  while (unit * 16 < bytes) unit *= 2;
  return (bytes + unit - 1) / unit * unit;
}

void* map(size_t bytes) {
  void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) return nullptr;
  if (bytes >= 2 * kHugePage) madvise(data, bytes, MADV_HUGEPAGE);  // fewer page faults; no harm where it is refused
  return data;
}

class CachingAllocator final : public c10::Allocator {
 public:
  explicit CachingAllocator(c10::Allocator* small) : small_(small) {}

  c10::DataPtr allocate(size_t bytes) override {
    void* data = bytes < kSmallest ? small_->raw_allocate(bytes) : take(rounded(bytes));
    TORCH_CHECK(data != nullptr || bytes == 0, "can't allocate memory: you tried to allocate ", bytes, " bytes");
    return {data, data, &CachingAllocator::release, c10::Device(c10::DeviceType::CPU)};
  }
  // oneDNN asks for plain pointers and gives them back without their size.
  c10::DeleterFnPtr raw_deleter() const override { return &CachingAllocator::release; }
  void copy_data(void* to, const void* from, size_t bytes) const override { std::memcpy(to, from, bytes); }

  CachingAllocatorStatistics statistics() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return {used_, waiting_bytes_, reused_};
  }

 private:
  struct Block {
    void* data;
    size_t bytes;
  };

  void* take(size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    // The latest first: it may still be in the processor's cache.
    const auto found =
        std::find_if(waiting_.rbegin(), waiting_.rend(), [&](const Block& block) { return block.bytes == bytes; });
    void* data = nullptr;
    if (found != waiting_.rend()) {
      data = found->data;
      waiting_.erase(std::next(found).base());
      waiting_bytes_ -= bytes;
      ++reused_;
    } else {
      data = map(bytes);
      if (data == nullptr) {
        unmap_waiting(0);
        data = map(bytes);
      }
      if (data == nullptr) return nullptr;
    }
    sizes_[data] = bytes;
    used_ += bytes;
    most_used_ = std::max(most_used_, used_);
    return data;
  }

  void give_back(void* data) {
    if (data == nullptr) return;
    std::unique_lock<std::mutex> lock(mutex_);
    const auto found = sizes_.find(data);
    if (found == sizes_.end()) {
      lock.unlock();
      return small_->raw_deallocate(data);
    }
    const size_t bytes = found->second;
    sizes_.erase(found);
    used_ -= bytes;
    waiting_.push_back({data, bytes});
    waiting_bytes_ += bytes;
    unmap_waiting(most_used_ / 4 + kAlwaysKept);
  }

  // The longest waiting first, until at most `limit` bytes wait.
  void unmap_waiting(size_t limit) {
    while (waiting_bytes_ > limit) {
      munmap(waiting_.front().data, waiting_.front().bytes);
      waiting_bytes_ -= waiting_.front().bytes;
      waiting_.pop_front();
    }
  }

  static void release(void* data);

  c10::Allocator* small_;
  std::mutex mutex_;
  std::unordered_map<void*, size_t> sizes_;  // of blocks in use
  std::list<Block> waiting_;                 // in the order in which they were freed
  size_t used_ = 0, most_used_ = 0, waiting_bytes_ = 0;
  uint64_t reused_ = 0;
};

// Lives until the process ends: static tensors may be freed after everything else.
CachingAllocator& instance() {
  static auto* allocator = new CachingAllocator(c10::GetDefaultCPUAllocator());
  return *allocator;
}

void CachingAllocator::release(void* data) { instance().give_back(data); }

}  // namespace

void use_caching_allocator() { c10::SetCPUAllocator(&instance(), /*priority=*/100); }

CachingAllocatorStatistics caching_allocator_statistics() { return instance().statistics(); }

}  // namespace qalora::tensor
