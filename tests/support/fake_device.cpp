#include "support/fake_device.h"

#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/DeviceType.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include <algorithm>
#include <string>

#include "qalora/tensor/accelerator.h"
#include "support/fake_graph.h"
#include "support/fake_kernels.h"
#include "support/fake_memory.h"
#include "support/fake_operators.h"

namespace qalora::test {

namespace {

// One device with one stream on which everything has happened by the time anybody asks.
struct Guard final : c10::impl::DeviceGuardImplInterface {
  static c10::Stream only_stream() { return c10::Stream(c10::Stream::DEFAULT, kFakeDevice); }

  c10::DeviceType type() const override { return c10::DeviceType::PrivateUse1; }
  c10::Device exchangeDevice(c10::Device) const override { return kFakeDevice; }
  c10::Device getDevice() const override { return kFakeDevice; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  c10::Stream getStream(c10::Device) const override { return only_stream(); }
  c10::Stream getDefaultStream(c10::Device) const override { return only_stream(); }
  c10::Stream getStreamFromGlobalPool(c10::Device, bool) const override { return only_stream(); }
  c10::Stream getNewStream(c10::Device, int) const override { return only_stream(); }
  c10::Stream exchangeStream(c10::Stream) const override { return only_stream(); }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
  void synchronizeEvent(void*) const override {}
  void synchronizeDevice(const c10::DeviceIndex) const override {}
};

// At load, not on first use: autograd counts the devices when it starts its threads, which a backward pass on the CPU
// does as well.
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  void setCurrentDevice(c10::DeviceIndex) const override {}
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::Allocator* getPinnedMemoryAllocator() const override { return c10::GetCPUAllocator(); }
  c10::Device getDeviceFromPtr(void* data) const override {
    to_host_pointer(data, "getDeviceFromPtr");
    return kFakeDevice;
  }
};

tensor::AcceleratorMemory memory(int) {
  const FakeStatistics statistics = fake_statistics();
  const uint64_t total = fake_memory_limit();
  return {total, total - std::min(total, statistics.used_bytes), statistics.peak_bytes};
}

tensor::Accelerator describe() {
  tensor::Accelerator accelerator;
  accelerator.type = c10::DeviceType::PrivateUse1;
#ifdef QALORA_FAKE_KERNELS
  accelerator.kernels = &fake_kernels(kernels::cuda::api());
#endif
  accelerator.version = "fake";
  accelerator.count = [] { return 1; };
  accelerator.problem = [] { return std::string(); };
  accelerator.properties = [](int) { return tensor::AcceleratorProperties{"fake", 90, 4}; };
  accelerator.memory = &memory;
  accelerator.current_stream = [](int) -> kernels::cuda::Stream { return nullptr; };
  accelerator.synchronize = [](int) {};
  accelerator.release_cached_memory = [] {};
  accelerator.record = &record_graph;
  return accelerator;
}

}  // namespace

c10::Device use_fake_accelerator() {
  static const tensor::Accelerator* used = [] {
    c10::register_privateuse1_backend("fake");
    c10::SetAllocator(c10::DeviceType::PrivateUse1, fake_allocator());
    at::RegisterPrivateUse1HooksInterface(new Hooks);
    register_fake_operators();
    const auto* accelerator = new tensor::Accelerator(describe());
    tensor::use_accelerator(*accelerator);
    return accelerator;
  }();
  return c10::Device(used->type, 0);
}

}  // namespace qalora::test
