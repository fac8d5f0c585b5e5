#include "qalora/io/gptq_view.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "gptq_codes.h"
#include "qalora/core/checked.h"
#include "qalora/core/error.h"
#include "qalora/core/log.h"
#include "qalora/io/input_order.h"

namespace qalora::io {
namespace {

const std::string kCodes = ".qweight", kZeros = ".qzeros", kScales = ".scales", kGroups = ".g_idx";
// Keeps every product of two sizes and a number of bits within 64 bits.
constexpr int64_t kLargestSize = int64_t{1} << 27;

const std::byte* bytes_of(const TensorBytes& stored) { return stored.span.data(); }

}  // namespace

bool GptqView::is_packed(const TensorSource& raw) {
  return std::ranges::any_of(raw.tensors(), [](const auto& entry) { return entry.first.ends_with(kCodes); });
}

GptqView::GptqView(std::unique_ptr<TensorSource> raw, ForeignQuantization quantization,
                   const std::function<bool(const std::string&)>& has_bias)
    : raw_(std::move(raw)),
      quantization_(std::move(quantization)) {
  for (const auto& [name, info] : raw_->tensors()) {
    if (!name.ends_with(kCodes)) continue;
    const std::string module = name.substr(0, name.size() - kCodes.size());
    modules_.emplace(module, check_module(module));
  }
  for (const auto& [name, info] : raw_->tensors()) {
    const size_t dot = std::min(name.rfind('.'), name.size());
    const auto found = modules_.find(name.substr(0, dot));
    const std::string part = name.substr(dot);
    if (found == modules_.end()) {
      tensors_[name] = info;
    } else if (part == ".bias") {
      if (has_bias(found->first) || !is_empty_bias(name)) tensors_[name] = info;
    } else {
      QALORA_REQUIRE(part == kCodes || part == kZeros || part == kScales || part == kGroups, DataError,
                     raw_->file_of(name).string(), ": tensor '", name, "' beside '", found->first, kCodes,
                     "' is not part of this layout");
    }
  }
  for (const auto& [name, module] : modules_) {
    const int64_t words = module.in_features * module.bits / 32;
    add(name + ".weight", Dtype::kU32, {module.out_features, words}, {name, Part::kCodes});
    add(name + ".scales", Dtype::kF32, {module.out_features, module.groups}, {name, Part::kScales});
    add(name + ".biases", Dtype::kF32, {module.out_features, module.groups}, {name, Part::kOffsets});
    if (module.order.defined()) add(name + kGroups, Dtype::kI32, {module.in_features}, {name, Part::kGroups});
  }
}

void GptqView::add(const std::string& name, Dtype dtype, std::vector<int64_t> shape, const Place& place) {
  uint64_t bytes = static_cast<uint64_t>(dtype_bytes(dtype));
  for (int64_t size : shape) bytes *= static_cast<uint64_t>(size);  // below 2^62: kLargestSize
  tensors_[name] = {dtype, std::move(shape), 0, bytes};
  places_.insert_or_assign(name, place);
}

bool GptqView::is_empty_bias(const std::string& name) const {
  part_info(name, {Dtype::kF16, Dtype::kBF16, Dtype::kF32});
  return raw_->read(name).eq(0).all().item<bool>();
}

// A tensor that must be there, of one of these types and of sizes that cannot overflow.
const TensorInfo& GptqView::part_info(const std::string& tensor, std::initializer_list<Dtype> dtypes) const {
  const TensorInfo& info = raw_->info(tensor);
  const std::string where = message(raw_->file_of(tensor).string(), ": tensor '", tensor, "' ");
  QALORA_REQUIRE(std::ranges::find(dtypes, info.dtype) != dtypes.end(), DataError, where, "is ", dtype_name(info.dtype),
                 ", expected ", dtype_name(*dtypes.begin()));
  const bool sane = std::ranges::all_of(info.shape, [](int64_t size) { return size >= 1 && size <= kLargestSize; });
  QALORA_REQUIRE(sane && info.shape.size() <= 2, DataError, where, "has shape ", at::IntArrayRef(info.shape),
                 ", which is absurd");
  return info;
}

GptqView::Module GptqView::check_module(const std::string& name) const {
  const auto shape_of = [&](const std::string& tensor, std::initializer_list<Dtype> dtypes) {
    const auto& shape = part_info(tensor, dtypes).shape;
    QALORA_REQUIRE(shape.size() == 2, DataError, raw_->file_of(tensor).string(), ": tensor '", tensor, "' has shape ",
                   at::IntArrayRef(shape), ", expected two dimensions");
    return shape;
  };
  const std::string where = raw_->file_of(name + kCodes).string() + ": tensor '" + name;
  const auto codes = shape_of(name + kCodes, {Dtype::kI32, Dtype::kU32});
  for (const std::string& part : {kZeros, kScales}) {
    QALORA_REQUIRE(raw_->contains(name + part), DataError, where, kCodes, "' has no '", name, part, "' beside it");
  }
  const auto zeros = shape_of(name + kZeros, {Dtype::kI32, Dtype::kU32});
  const auto scales = shape_of(name + kScales, {Dtype::kF16, Dtype::kBF16, Dtype::kF32});
  Module module;
  module.groups = scales[0];
  module.out_features = scales[1];
  QALORA_REQUIRE(module.out_features % 32 == 0, DataError, where, kScales, "' has ", module.out_features,
                 " outputs, expected a multiple of 32");
  const int64_t field = zeros[1] * 32 / module.out_features;  // bits of a zero point
  module.bits = quantization_.overrides ? static_cast<int>(std::min<int64_t>(field, 32)) : quantization_.bits;
  const bool awq = quantization_.layout == ForeignLayout::kAwq;
  const bool known = module.bits == 4 || (!awq && (module.bits == 2 || module.bits == 3 || module.bits == 8));
  QALORA_REQUIRE(known && zeros[0] == module.groups && zeros[1] * 32 == module.out_features * module.bits, DataError,
                 where, kZeros, "' has shape ", at::IntArrayRef(zeros), ", expected ", module.groups, " groups (as '",
                 kScales, "' has) of ", module.out_features, " outputs of ", quantization_.bits,
                 " bits in 32-bit words, as ", quantization_.name, " says");
  const int64_t code_bits = codes[0] * 32;
  module.in_features = awq ? codes[0] : code_bits / module.bits;
  const bool fits =
      awq ? codes[1] * 8 == module.out_features : codes[1] == module.out_features && code_bits % module.bits == 0;
  QALORA_REQUIRE(fits, DataError, where, kCodes, "' has shape ", at::IntArrayRef(codes), ", expected ", module.bits,
                 "-bit codes of ", module.out_features, " outputs in ", awq ? "AWQ's" : "GPTQ's", " order");
  QALORA_REQUIRE(module.in_features % 32 == 0 && module.in_features <= kLargestSize, DataError, where, kCodes, "' has ",
                 module.in_features, " inputs, expected a multiple of 32");
  module.group_size = quantization_.group_size == -1 ? module.in_features : quantization_.group_size;
  const bool own_groups = quantization_.overrides && module.in_features % module.groups == 0;
  if (own_groups && ceil_div(module.in_features, module.group_size) != module.groups)
    module.group_size = module.in_features / module.groups;
  QALORA_REQUIRE(ceil_div(module.in_features, module.group_size) == module.groups, DataError, where, kScales, "' has ",
                 module.groups, " groups, expected ", ceil_div(module.in_features, module.group_size), " for ",
                 module.in_features, " inputs in groups of ", module.group_size, ", as ", quantization_.name, " says");
  read_groups(name, module);
  return module;
}

void GptqView::read_groups(const std::string& name, Module& module) const {
  const std::string tensor = name + kGroups;
  if (!raw_->contains(tensor)) {
    QALORA_REQUIRE(!quantization_.act_order || module.groups == 1, DataError, raw_->file_of(name + kCodes).string(),
                   ": tensor '", tensor, "' is missing, but ", quantization_.name,
                   " says desc_act: which inputs a group has is not known. Get the whole checkpoint, "
                   "or start from the dense one ('qalora quantize')");
    return;
  }
  const auto& shape = part_info(tensor, {Dtype::kI32, Dtype::kI64}).shape;
  const std::string where = raw_->file_of(tensor).string() + ": tensor '" + tensor + "'";
  QALORA_REQUIRE(shape.size() == 1 && shape[0] == module.in_features, DataError, where, " has shape ",
                 at::IntArrayRef(shape), ", expected [", module.in_features, "]: a group for each input");
  module.order = input_order(where, raw_->read(tensor), module.group_size);
  raw_->release(tensor);
}

at::Tensor GptqView::read(const std::string& name) const {
  const auto found = places_.find(name);
  if (found == places_.end()) {
    info(name);
    return raw_->read(name);
  }
  const auto& [module_name, part] = found->second;
  const Module& module = modules_.at(module_name);
  if (part == Part::kCodes) return read_codes(module_name, module);
  if (part == Part::kScales) return read_scales(module_name);
  if (part == Part::kOffsets) return read_offsets(module_name, module);
  return raw_->read(name).to(at::kInt);
}

at::Tensor GptqView::read_codes(const std::string& name, const Module& module) const {
  const TensorBytes stored = raw_->bytes(name + kCodes);
  const ForeignCodes from{
      quantization_.layout, module.bits,
      module.in_features,   module.out_features,
      bytes_of(stored),     module.order.defined() ? module.order.const_data_ptr<int64_t>() : nullptr};
  at::Tensor codes = at::empty({module.out_features, module.in_features * module.bits / 32}, at::kInt);
  auto* packed = reinterpret_cast<uint32_t*>(codes.data_ptr<int32_t>());
  at::parallel_for(0, ceil_div(module.out_features, kTileColumns), 1, [&](int64_t begin, int64_t end) {
    turn_codes(from, begin * kTileColumns, std::min(end * kTileColumns, module.out_features), packed);
  });
  return codes;
}

at::Tensor GptqView::read_scales(const std::string& name) const {
  return raw_->read(name + kScales).to(at::kFloat).t().contiguous();  // [out_features, groups]
}

at::Tensor GptqView::read_offsets(const std::string& name, const Module& module) const {
  const TensorBytes stored = raw_->bytes(name + kZeros);
  const at::Tensor scales = raw_->read(name + kScales).to(at::kFloat);  // [groups, out_features]
  const ForeignZeros from{
      quantization_.layout, quantization_.zeros,           module.bits, module.groups, module.out_features,
      bytes_of(stored),     scales.const_data_ptr<float>()};
  at::Tensor offsets = at::empty({module.out_features, module.groups}, at::kFloat);
  auto* out = offsets.data_ptr<float>();
  std::atomic<int64_t> beyond = 0;
  at::parallel_for(0, ceil_div(module.out_features, kTileColumns), 1, [&](int64_t begin, int64_t end) {
    beyond += turn_zeros(from, begin * kTileColumns, std::min(end * kTileColumns, module.out_features), out);
  });
  if (beyond > 0 && !warned_.exchange(true)) {
    log::warn(message(raw_->file_of(name + kZeros).string(), ": tensor '", name, kZeros, "': ", beyond.load(),
                      " zero points are stored as ", (1 << module.bits) - 1, " and read as ", 1 << module.bits,
                      ", as AutoGPTQ does; its packer writes that beside a zero point "
                      "of 0, and what stood there is lost"));
  }
  return offsets;
}

TensorBytes GptqView::bytes(const std::string& name) const {
  if (places_.contains(name)) return TensorSource::bytes(name);
  info(name);
  return raw_->bytes(name);
}

std::string GptqView::stored_name(const std::string& name) const {
  const auto found = places_.find(name);
  if (found == places_.end()) return name;
  const auto& [module, part] = found->second;
  return module + (part == Part::kCodes     ? kCodes
                   : part == Part::kScales  ? kScales
                   : part == Part::kOffsets ? kZeros
                                            : kGroups);
}

std::vector<TensorBytes> GptqView::stored(const std::string& name) const {
  info(name);
  return raw_->stored(stored_name(name));
}

void GptqView::release(const std::string& name) const { raw_->release(stored_name(name)); }

const fs::path& GptqView::file_of(const std::string& name) const {
  const auto found = places_.find(name);
  return raw_->file_of(found == places_.end() ? name : found->second.module + kCodes);
}

nlohmann::json GptqView::quantization() const {
  nlohmann::json result = {{"bits", quantization_.bits}, {"group_size", quantization_.group_size}, {"mode", "affine"}};
  for (const auto& [name, module] : modules_) {
    const int64_t expected = quantization_.group_size == -1 ? module.in_features : quantization_.group_size;
    if (module.bits == quantization_.bits && module.group_size == expected) continue;
    result[name] = {{"bits", module.bits}, {"group_size", module.group_size}};
  }
  return result;
}

}  // namespace qalora::io
