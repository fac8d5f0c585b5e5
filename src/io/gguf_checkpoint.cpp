#include "qalora/io/gguf_checkpoint.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cstring>

#include "qalora/core/checked.h"
#include "qalora/core/error.h"
#include "qalora/io/gguf_blocks.h"
#include "qalora/io/gguf_config.h"
#include "qalora/io/gguf_names.h"
#include "qalora/kernels/packed.h"

namespace qalora::io {
namespace {

constexpr const char* kReadTypes = "F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0";

GgufType type_of(const GgufTensor& tensor) { return static_cast<GgufType>(tensor.type); }

bool is_dense(GgufType type) { return type == GgufType::kF32 || type == GgufType::kF16 || type == GgufType::kBF16; }

Dtype dense_dtype(GgufType type) {
  return type == GgufType::kF32 ? Dtype::kF32 : type == GgufType::kF16 ? Dtype::kF16 : Dtype::kBF16;
}

// What `quantize` packs too: the seven projections of a layer.
bool is_projection(const std::string& name, const GgufTensor& tensor) {
  return name.starts_with("model.layers.") && name.ends_with("_proj.weight") && tensor.shape.size() == 2;
}

// Tables of constants that old files carry and rope_freqs.weight, which is part of the configuration.
bool is_constant(const std::string& name) { return name == "rope_freqs.weight" || name.ends_with(".attn_rot_embd"); }

// Rows of `row_bytes` from the file's order into ours.
void copy_permuted(std::span<const std::byte> from, int64_t rows, int64_t head_dim, std::byte* to) {
  const size_t row_bytes = from.size() / static_cast<size_t>(rows);
  for (int64_t row = 0; row < rows; ++row) {
    std::memcpy(to + static_cast<size_t>(row) * row_bytes,
                from.data() + static_cast<size_t>(gguf_row(row, head_dim)) * row_bytes, row_bytes);
  }
}

}  // namespace

GgufCheckpoint::GgufCheckpoint(const fs::path& path) : file_(path) {
  const GgufContents& contents = file_.contents();
  config_ = gguf_config(contents);
  architecture_ = *contents.text("general.architecture");
  head_dim_ = config_.at("head_dim").get<int64_t>();
  for (const auto& [name, tensor] : contents.tensors) {
    if (is_constant(name)) continue;
    const auto known = name_from_gguf(name);
    QALORA_REQUIRE(known, DataError, contents.name, ": tensor '", name, "' is not part of a model of architecture '",
                   architecture_, "'");
    add(*known, tensor);
  }
  add_quantization();
}

// The bits of most modules, and those that differ by name, as MLX writes it.
void GgufCheckpoint::add_quantization() {
  std::map<int, int64_t> modules_of_bits;
  for (const auto& [name, place] : places_) {
    if (place.part == Part::kCodes) ++modules_of_bits[gguf_code_bits(type_of(*place.tensor))];
  }
  if (modules_of_bits.empty()) return;
  const auto entry = [](int bits) {
    return nlohmann::json{{"bits", bits}, {"group_size", kGgufBlock}, {"mode", "affine"}};
  };
  const auto usual = std::max_element(modules_of_bits.begin(), modules_of_bits.end(),
                                      [](const auto& a, const auto& b) { return a.second < b.second; });
  nlohmann::json& quantization = config_["quantization"] = entry(usual->first);
  for (const auto& [name, place] : places_) {
    if (place.part != Part::kCodes) continue;
    const int bits = gguf_code_bits(type_of(*place.tensor));
    if (bits != usual->first) quantization[name.substr(0, name.rfind('.'))] = entry(bits);
  }
}

void GgufCheckpoint::add(const std::string& name, const GgufTensor& tensor) {
  const GgufType type = type_of(tensor);
  const std::string where = message(file_.path().string(), ": tensor '", *name_to_gguf(name), "' ");
  QALORA_REQUIRE(is_dense(type) || gguf_code_bits(type) > 0, DataError, where, "is of type ",
                 gguf_layout(tensor.type)->name, ", which is not read (", kReadTypes,
                 " are); K-quants and the like round scales and offsets too, so start from another file of "
                 "this model");
  QALORA_REQUIRE(is_dense(type) || tensor.shape.size() > 1, DataError, where, "is a vector of type ",
                 gguf_layout(type).name, ", expected F32, F16 or BF16");
  const int64_t heads = gguf_permuted_heads(architecture_, name, config_.at("num_attention_heads").get<int64_t>(),
                                            config_.at("num_key_value_heads").get<int64_t>());
  if (heads > 0) {
    int64_t rows = 0;
    const bool fits = !__builtin_mul_overflow(heads, head_dim_, &rows) && tensor.shape[0] == rows && head_dim_ > 0 &&
                      head_dim_ % 2 == 0;
    QALORA_REQUIRE(fits, DataError, where, "has ", tensor.shape[0], " rows, expected ", heads, " heads of ", head_dim_);
  }
  Place place{&tensor, Part::kStored, heads > 0};
  if (is_dense(type)) return add_part(name, place, dense_dtype(type), tensor.shape);
  if (!is_projection(name, tensor)) {
    place.part = Part::kValues;
    return add_part(name, place, Dtype::kF32, tensor.shape);
  }
  const int64_t rows = tensor.shape[0], columns = tensor.shape[1], groups = columns / kGgufBlock;
  const std::string module = name.substr(0, name.rfind('.'));
  place.part = Part::kCodes;
  add_part(name, place, Dtype::kU32, {rows, kernels::words_per_row(columns, gguf_code_bits(type))});
  place.part = Part::kScales;
  add_part(module + ".scales", place, Dtype::kF32, {rows, groups});
  place.part = Part::kOffsets;
  add_part(module + ".biases", place, Dtype::kF32, {rows, groups});
}

void GgufCheckpoint::add_part(const std::string& name, const Place& place, Dtype dtype, std::vector<int64_t> shape) {
  // A few times the file's bytes at most: those were checked, so this cannot overflow.
  const auto bytes = static_cast<uint64_t>(*checked_elements(shape) * dtype_bytes(dtype));
  tensors_[name] = {.dtype = dtype, .shape = std::move(shape), .begin = 0, .end = bytes};
  places_[name] = place;
}

const GgufCheckpoint::Place& GgufCheckpoint::place_of(const std::string& name) const {
  info(name);
  return places_.at(name);
}

at::Tensor GgufCheckpoint::read(const std::string& name) const {
  const Place& place = place_of(name);
  const TensorInfo& about = info(name);
  const GgufTensor& tensor = *place.tensor;
  at::Tensor result = at::empty(about.shape, at::dtype(scalar_type(about.dtype)));
  auto* to = static_cast<std::byte*>(result.data_ptr());
  if (place.part == Part::kStored) {
    if (place.permuted) {
      copy_permuted(tensor.bytes, about.shape[0], head_dim_, to);
    } else {
      std::memcpy(to, tensor.bytes.data(), tensor.bytes.size());
    }
    return result;
  }
  const GgufType type = type_of(tensor);
  const int bits = gguf_code_bits(type);
  const int64_t blocks = tensor.shape.back() / kGgufBlock;
  const int64_t rows = *checked_elements(tensor.shape) / tensor.shape.back();
  const size_t row_bytes = tensor.bytes.size() / static_cast<size_t>(rows),
               out_bytes = result.nbytes() / static_cast<size_t>(rows);
  at::parallel_for(0, rows, std::max<int64_t>(1, 4096 / blocks), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const std::byte* from =
          tensor.bytes.data() + row_bytes * static_cast<size_t>(place.permuted ? gguf_row(row, head_dim_) : row);
      std::byte* out = to + out_bytes * static_cast<size_t>(row);
      switch (place.part) {
        case Part::kCodes: gguf_row_codes(type, from, blocks, bits, reinterpret_cast<uint32_t*>(out)); break;
        case Part::kScales: gguf_row_scales(type, from, blocks, reinterpret_cast<float*>(out)); break;
        case Part::kOffsets: gguf_row_offsets(type, from, blocks, reinterpret_cast<float*>(out)); break;
        default: gguf_row_values(type, from, blocks, reinterpret_cast<float*>(out));
      }
    }
  });
  return result;
}

TensorBytes GgufCheckpoint::bytes(const std::string& name) const {
  const Place& place = place_of(name);
  if (place.part == Part::kStored && !place.permuted) return {at::Tensor(), place.tensor->bytes};
  return TensorSource::bytes(name);
}

std::vector<TensorBytes> GgufCheckpoint::stored(const std::string& name) const {
  return {{at::Tensor(), place_of(name).tensor->bytes}};
}

void GgufCheckpoint::release(const std::string& name) const { file_.release(place_of(name).tensor->bytes); }

}  // namespace qalora::io
