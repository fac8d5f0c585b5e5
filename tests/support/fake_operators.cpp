#include "support/fake_operators.h"

#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include <memory>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "support/fake_graph.h"
#include "support/fake_memory.h"

namespace qalora::test {

namespace {

using Stack = std::vector<c10::IValue>;

// One operator's tensors in both guises. A twin is a CPU tensor over a device tensor's memory, with its sizes and
// strides; device tensors that share memory get twins that share it, so that LibTorch sees the overlaps.
class Twins {
 public:
  c10::Storage host(const c10::Storage& device) {
    for (const Pair& pair : storages_) {
      if (pair.device.is_alias_of(device)) return pair.host;
    }
    storages_.push_back({device, host_storage(device), device.nbytes()});
    storages_.back().data = storages_.back().host.data();
    return storages_.back().host;
  }

  at::Tensor host(const at::Tensor& tensor) {
    if (!tensor.defined() || tensor.device() != kFakeDevice) return tensor;
    for (const auto& [device, twin] : tensors_) {
      if (device.is_same(tensor)) return twin;
    }
    TORCH_CHECK(tensor.layout() == c10::kStrided, "the fake device has strided tensors only");
    at::Tensor twin = at::detail::make_tensor<c10::TensorImpl>(
        host(tensor.storage()), c10::DispatchKeySet(c10::DispatchKey::CPU), tensor.dtype());
    twin.unsafeGetTensorImpl()->set_sizes_and_strides(tensor.sizes(), tensor.strides(), tensor.storage_offset());
    // Decides on types: 2.0 beside a bf16 tensor stays bf16.
    if (tensor.unsafeGetTensorImpl()->is_wrapped_number()) twin.unsafeGetTensorImpl()->set_wrapped_number(true);
    tensors_.emplace_back(tensor, twin);
    return twin;
  }

  c10::Storage device(const c10::Storage& host) {
    for (const Pair& pair : storages_) {
      if (pair.host.is_alias_of(host)) return pair.device;
    }
    storages_.push_back({adopted_storage(host), host, host.nbytes()});
    storages_.back().data = host.data();
    return storages_.back().device;
  }

  // What an operator returned: one of its arguments, a view of one, or something new.
  at::Tensor device(const at::Tensor& tensor) {
    if (!tensor.defined()) return tensor;
    for (const auto& [device, twin] : tensors_) {
      if (twin.is_same(tensor)) return device;
    }
    at::Tensor result = at::detail::make_tensor<c10::TensorImpl>(
        device(tensor.storage()), c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), tensor.dtype());
    result.unsafeGetTensorImpl()->set_sizes_and_strides(tensor.sizes(), tensor.strides(), tensor.storage_offset());
    return result;
  }

  // Brings over what the operator changed beside the memory's content: sizes (resize_, out=) and the memory itself
  // (growth, set_).
  void settle() {
    for (size_t i = 0; i < storages_.size(); ++i) {
      Pair& pair = storages_[i];
      if (pair.host.data() == pair.data && pair.host.nbytes() == pair.bytes) continue;
      pair.device.unsafeGetStorageImpl()->set_data_ptr_noswap(adopt(pair.host));
      pair.device.set_nbytes(pair.host.nbytes());
    }
    for (const auto& [device, twin] : tensors_) {
      c10::TensorImpl* impl = device.unsafeGetTensorImpl();
      const c10::Storage storage = this->device(twin.storage());
      if (!storage.is_alias_of(device.storage())) impl->set_storage_keep_dtype(storage);
      if (device.sizes() != twin.sizes() || device.strides() != twin.strides() ||
          device.storage_offset() != twin.storage_offset()) {
        impl->set_sizes_and_strides(twin.sizes(), twin.strides(), twin.storage_offset());
      }
    }
  }

 private:
  struct Pair {
    c10::Storage device, host;
    size_t bytes;  // before the operator ran
    const void* data = nullptr;
  };
  std::vector<Pair> storages_;
  std::vector<std::pair<at::Tensor, at::Tensor>> tensors_;  // device, twin
};

// ---- What may meet
// --------------------------------------------------------------------------------------------------------------

// Operators that CUDA lets take a CPU tensor of no dimensions: built on a TensorIterator with allow_cpu_scalars, or
// reading the number on the host. A second word: only in this argument.
bool takes_cpu_scalar(const std::string& operator_name, const std::string& argument) {
  static const std::set<std::string> any = {
      "add",        "sub",         "rsub", "mul",         "div",        "true_divide", "floor_divide",
      "remainder",  "fmod",        "pow",  "atan2",       "copysign",   "hypot",       "xlogy",
      "maximum",    "minimum",     "fmax", "fmin",        "eq",         "ne",          "lt",
      "le",         "gt",          "ge",   "logical_and", "logical_or", "logical_xor", "bitwise_and",
      "bitwise_or", "bitwise_xor", "lerp", "addcmul",     "addcdiv",    "where",       "clamp",
      "clamp_min",  "clamp_max"};
  static const std::set<std::pair<std::string, std::string>> one = {{"masked_fill", "value"},
                                                                    {"fill", "value"},
                                                                    {"_index_put_impl", "values"},
                                                                    {"_fused_adamw", "lr"},
                                                                    {"_fused_adam", "lr"}};
  std::string name = operator_name.substr(operator_name.rfind(':') + 1);
  if (name.ends_with('_')) name.pop_back();
  return any.contains(name) || one.contains({name, argument});
}

std::string describe(const at::Tensor& tensor) {
  return c10::str(tensor.sizes(), " ", tensor.dtype().name(), " on ", tensor.device());
}

// Calls `function(argument's schema, tensor)` for every defined tensor among the arguments.
template <typename Function>
void for_each_tensor(const c10::FunctionSchema& schema, const c10::IValue* arguments, Function function) {
  for (size_t i = 0; i < schema.arguments().size(); ++i) {
    const c10::IValue& value = arguments[i];
    const auto visit = [&](const at::Tensor& tensor) {
      if (tensor.defined()) function(schema.arguments()[i], tensor);
    };
    if (value.isTensor()) {
      visit(value.toTensor());
    } else if (value.isTensorList()) {
      for (const at::Tensor& tensor : value.toTensorVector()) visit(tensor);
    } else if (value.isOptionalTensorList()) {
      for (const std::optional<at::Tensor>& tensor : value.toOptionalTensorVector()) {
        if (tensor) visit(*tensor);
      }
    }
  }
}

void refuse_mixtures(const c10::FunctionSchema& schema, const c10::IValue* arguments) {
  for_each_tensor(schema, arguments, [&](const c10::Argument& argument, const at::Tensor& tensor) {
    if (tensor.device() == kFakeDevice) return;
    const bool written = argument.alias_info() != nullptr && argument.alias_info()->isWrite();
    TORCH_CHECK(tensor.dim() == 0 && !written && takes_cpu_scalar(schema.name(), argument.name()), schema.name(),
                ": expected all tensors on the fake device, but '", argument.name(), "' is ", describe(tensor));
  });
  for (size_t i = 0; i < schema.arguments().size(); ++i) {
    const c10::IValue& value = arguments[i];
    TORCH_CHECK(!value.isDevice() || value.toDevice() == kFakeDevice, schema.name(), ": makes a tensor on ",
                value.isDevice() ? value.toDevice() : kFakeDevice, " from some of the fake device");
    TORCH_CHECK(!value.isGenerator(), schema.name(), ": a CPU generator cannot draw on the fake device");
  }
}

// What the CPU can and CUDA cannot.
void refuse_what_cuda_lacks(const c10::FunctionSchema& schema, const c10::IValue* arguments) {
  static const std::set<std::string> products = {"aten::mm",      "aten::addmm", "aten::bmm",
                                                 "aten::baddbmm", "aten::mv",    "aten::addmv"};
  const std::string& name = schema.name();
  TORCH_CHECK(name.find("_for_cpu") == std::string::npos && name.find("mkldnn") == std::string::npos, name,
              ": CUDA has no such kernel");
  if (!products.contains(name)) return;
  for_each_tensor(schema, arguments, [&](const c10::Argument& argument, const at::Tensor& tensor) {
    TORCH_CHECK(!c10::isIntegralType(tensor.scalar_type(), true), name,
                ": CUDA multiplies no matrices of integers, but '", argument.name(), "' is ", describe(tensor));
  });
}

// ---- Running
// ----------------------------------------------------------------------------------------------------------------------

c10::IValue to_host(const c10::IValue& value, Twins& twins) {
  if (value.isTensor()) return twins.host(value.toTensor());
  if (value.isStorage()) return twins.host(value.toStorage());
  if (value.isDevice()) return c10::Device(c10::DeviceType::CPU);
  if (value.isTensorList()) {
    c10::List<at::Tensor> list;
    for (const at::Tensor& tensor : value.toTensorVector()) list.push_back(twins.host(tensor));
    return list;
  }
  if (value.isOptionalTensorList()) {
    c10::List<std::optional<at::Tensor>> list;
    for (const std::optional<at::Tensor>& tensor : value.toOptionalTensorVector()) {
      list.push_back(tensor ? std::optional(twins.host(*tensor)) : std::nullopt);
    }
    return list;
  }
  return value;
}

c10::IValue to_device(const c10::IValue& value, Twins& twins) {
  if (value.isTensor()) return twins.device(value.toTensor());
  if (!value.isTensorList()) return value;
  c10::List<at::Tensor> list;
  for (const at::Tensor& tensor : value.toTensorVector()) list.push_back(twins.device(tensor));
  return list;
}

// Its result's size, or its result, is the host's to know.
bool waits(const c10::FunctionSchema& schema, const c10::IValue* arguments) {
  static const std::set<std::string> always = {"aten::nonzero",
                                               "aten::masked_select",
                                               "aten::equal",
                                               "aten::bincount",
                                               "aten::_unique2",
                                               "aten::unique_dim",
                                               "aten::unique_consecutive",
                                               "aten::repeat_interleave"};
  if (always.contains(schema.name())) return true;
  if (schema.name() != "aten::index" && schema.name() != "aten::_index_put_impl_") return false;
  bool masks = false;
  for_each_tensor(schema, arguments, [&](const c10::Argument& argument, const at::Tensor& tensor) {
    masks |= argument.name() == "indices" && (tensor.scalar_type() == c10::kBool || tensor.scalar_type() == c10::kByte);
  });
  return masks;
}

void note_wait(const std::string& name, uint64_t bytes) {
  refuse_to_wait(name);
  count_copy(/*to_device=*/false, bytes);
}

// Once more, on the same memory; what the first time was a fresh result is written over that.
void replay(const c10::OperatorHandle& operation, const std::vector<Held>& arguments,
            const std::vector<Held>& results) {
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  Twins twins;
  Stack stack;
  for (const Held& argument : arguments) stack.push_back(to_host(argument(), twins));
  count_operator();
  operation.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), &stack);
  const auto overwrite = [&](const at::Tensor& result, const at::Tensor& recorded) {
    const at::Tensor place = twins.host(recorded);
    if (place.defined() && !place.is_alias_of(result)) place.copy_(result);
  };
  for (size_t i = 0; i < stack.size(); ++i) {
    const c10::IValue recorded = results[i]();
    if (stack[i].isTensor()) overwrite(stack[i].toTensor(), recorded.toTensor());
    if (!stack[i].isTensorList()) continue;
    const auto list = stack[i].toTensorVector(), recorded_list = recorded.toTensorVector();
    for (size_t k = 0; k < list.size(); ++k) overwrite(list[k], recorded_list[k]);
  }
}

std::vector<Held> hold_all(const c10::IValue* begin, const c10::IValue* end) {
  std::vector<Held> held;
  for (; begin != end; ++begin) held.push_back(hold(*begin));
  return held;
}

void run(const c10::OperatorHandle& operation, Stack* stack) {
  const c10::FunctionSchema& schema = operation.schema();
  const size_t begin = stack->size() - schema.arguments().size();
  refuse_mixtures(schema, stack->data() + begin);
  refuse_what_cuda_lacks(schema, stack->data() + begin);
  if (waits(schema, stack->data() + begin)) note_wait(schema.name(), 0);
  // Autograd has seen the operator already; its twin is nobody's business.
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  std::vector<Held> arguments;
  if (recording()) arguments = hold_all(stack->data() + begin, stack->data() + stack->size());
  Twins twins;
  Stack twin_stack;
  for (size_t i = begin; i < stack->size(); ++i) twin_stack.push_back(to_host((*stack)[i], twins));
  count_operator();
  operation.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), &twin_stack);
  twins.settle();
  stack->resize(begin);
  for (const c10::IValue& value : twin_stack) stack->push_back(to_device(value, twins));
  if (!recording()) return;
  add_step([operation, arguments = std::move(arguments),
            results = hold_all(stack->data() + begin, stack->data() + stack->size())] {
    replay(operation, arguments, results);
  });
}

void copy_now(const at::Tensor& from, const at::Tensor& to, bool non_blocking) {
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  count_operator();
  Twins twins;
  twins.host(to).copy_(twins.host(from), non_blocking);
}

at::Tensor copy_from(const at::Tensor& from, const at::Tensor& to, bool non_blocking) {
  if (from.device() != to.device()) {
    refuse_to_wait("a copy between the host and the device");
    count_copy(to.device() == kFakeDevice, to.numel() * to.element_size());
  }
  copy_now(from, to, non_blocking);
  if (recording()) {
    add_step([from = hold(from), to = hold(to)] { copy_now(from().toTensor(), to().toTensor(), false); });
  }
  return to;
}

at::Tensor copy_from_and_resize(const at::Tensor& from, const at::Tensor& to) {
  to.resize_(from.sizes());
  return copy_from(from, to, false);
}

at::Scalar local_scalar_dense(const at::Tensor& tensor) {
  note_wait("item", tensor.element_size());
  Twins twins;
  return at::_local_scalar_dense(twins.host(tensor));
}

at::Tensor empty(c10::IntArrayRef sizes, std::optional<c10::ScalarType> dtype, std::optional<c10::Layout>,
                 std::optional<c10::Device>, std::optional<bool>, std::optional<c10::MemoryFormat> format) {
  return at::detail::empty_generic(sizes, fake_allocator(), c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                   c10::dtype_or_default(dtype), format);
}

at::Tensor empty_strided(c10::IntArrayRef sizes, c10::IntArrayRef strides, std::optional<c10::ScalarType> dtype,
                         std::optional<c10::Layout>, std::optional<c10::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(sizes, strides, fake_allocator(),
                                           c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                           c10::dtype_or_default(dtype));
}

// at::scaled_dot_product_attention then takes the road of plain products and a softmax; the CPU's own choice would be
// its flash kernel.
int64_t fused_attention_choice(const at::Tensor&, const at::Tensor&, const at::Tensor&,
                               const std::optional<at::Tensor>&, double, bool, std::optional<double>, bool) {
  return 0;  // sdp::SDPBackend::math
}

std::string in_namespace(const c10::OperatorName& name) {
  const std::string base = name.name.substr(std::string_view("aten::").size());
  return name.overload_name.empty() ? base : base + "." + name.overload_name;
}

}  // namespace

void register_fake_operators() {
  static const std::set<std::string> own = {"_copy_from",          "_copy_from_and_resize", "_local_scalar_dense",
                                            "empty.memory_format", "empty_strided",         "_fused_sdp_choice"};
  using torch::CppFunction;
  static torch::Library operators(torch::Library::IMPL, "aten", c10::DispatchKey::PrivateUse1, __FILE__, __LINE__);
  operators.impl("_copy_from", &copy_from);
  operators.impl("_copy_from_and_resize", &copy_from_and_resize);
  operators.impl("_local_scalar_dense", &local_scalar_dense);
  operators.impl("empty.memory_format", &empty);
  operators.impl("empty_strided", &empty_strided);
  operators.impl("_fused_sdp_choice", &fused_attention_choice);
  // A fallback alone would not do: without a kernel of its own an operator such as add is taken apart into add.out and
  // loses its name.
  auto& dispatcher = c10::Dispatcher::singleton();
  for (const c10::OperatorName& name : dispatcher.getAllOpNames()) {
    if (!name.name.starts_with("aten::") || own.contains(in_namespace(name))) continue;
    const auto operation = dispatcher.findSchema(name);
    if (!operation || !operation->hasKernelForDispatchKey(c10::DispatchKey::CPU)) continue;
    operators.impl(in_namespace(name).c_str(), CppFunction::makeFromBoxedFunction<&run>());
  }
  static torch::Library rest(torch::Library::IMPL, "_", c10::DispatchKey::PrivateUse1, __FILE__, __LINE__);
  rest.fallback(CppFunction::makeFromBoxedFunction<&run>());
}

}  // namespace qalora::test
