#include "support/fake_graph.h"

#include <ATen/ATen.h>

#include <atomic>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "support/fake_memory.h"

namespace qalora::test {

namespace {

struct Graph final : tensor::RecordedGraph {
  std::shared_ptr<Pool> pool = open_pool();
  std::vector<std::function<void()>> steps;

  ~Graph() override {
    steps.clear();
    close_pool(*pool);
  }
  void replay() override {
    TORCH_CHECK(!recording(), "a graph cannot be replayed while another is recorded");
    for (const auto& step : steps) step();
  }
};

// Autograd's thread records, too.
std::atomic<Graph*> recorded = nullptr;

Held hold(const at::Tensor& tensor) {
  if (!tensor.defined()) return [] { return c10::IValue(at::Tensor()); };
  if (tensor.device() != kFakeDevice) return [number = tensor.clone()] { return c10::IValue(number); };
  const void* data = tensor.storage().data();
  const bool ours = data == nullptr || belongs_to(*recorded.load()->pool, data);
  return [owned = ours ? std::optional(tensor.storage()) : std::nullopt, weak = tensor.storage().getWeakStorageImpl(),
          sizes = tensor.sizes().vec(), strides = tensor.strides().vec(), offset = tensor.storage_offset(),
          dtype = tensor.dtype(), number = tensor.unsafeGetTensorImpl()->is_wrapped_number()] {
    auto there = weak.lock();
    TORCH_CHECK(there, "replay: a tensor that the graph works on is no longer there");
    auto again = at::detail::make_tensor<c10::TensorImpl>(c10::Storage(std::move(there)),
                                                          c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), dtype);
    again.unsafeGetTensorImpl()->set_sizes_and_strides(sizes, strides, offset);
    if (number) again.unsafeGetTensorImpl()->set_wrapped_number(true);
    return c10::IValue(again);
  };
}

}  // namespace

bool recording() { return recorded.load() != nullptr; }

void add_step(std::function<void()> step) { recorded.load()->steps.push_back(std::move(step)); }

void refuse_to_wait(const std::string& what) {
  TORCH_CHECK(!recording(), what, " waits for the device, which a graph that is being recorded cannot");
}

Held hold(const c10::IValue& value) {
  if (value.isTensor()) return hold(value.toTensor());
  if (value.isTensorList()) {
    std::vector<Held> held;
    for (const at::Tensor& tensor : value.toTensorVector()) held.push_back(hold(tensor));
    return [held = std::move(held)] {
      c10::List<at::Tensor> list;
      for (const Held& one : held) list.push_back(one().toTensor());
      return c10::IValue(list);
    };
  }
  if (value.isOptionalTensorList()) {
    std::vector<std::optional<Held>> held;
    for (const auto& tensor : value.toOptionalTensorVector())
      held.push_back(tensor ? std::optional(hold(*tensor)) : std::nullopt);
    return [held = std::move(held)] {
      c10::List<std::optional<at::Tensor>> list;
      for (const auto& one : held) list.push_back(one ? std::optional((*one)().toTensor()) : std::nullopt);
      return c10::IValue(list);
    };
  }
  return [value] { return value; };
}

std::unique_ptr<tensor::RecordedGraph> record_graph(int, const std::function<void()>& work) {
  auto graph = std::make_unique<Graph>();
  const Snapshot before = take_snapshot();
  recorded = graph.get();
  const auto finish = [&] {
    recorded = nullptr;
    leave_pool();
    restore(before, *graph->pool);
  };
  try {
    work();
  } catch (...) {
    finish();
    throw;
  }
  finish();
  return graph;
}

}  // namespace qalora::test
