#include "inspect_gguf.h"

#include <cmath>
#include <cstring>
#include <map>
#include <nlohmann/json.hpp>
#include <type_traits>

#include "inspect_model.h"
#include "qalora/core/checked.h"
#include "qalora/core/error.h"
#include "qalora/core/format.h"
#include "qalora/io/gguf_file.h"
#include "qalora/text/gguf_vocabulary.h"

namespace qalora::cli {
namespace {

using nlohmann::json;

// As it lies in the file: here a number may be any, though no reader takes it.
template <typename T>
json plain(const io::GgufValue& value) {
  T number;
  std::memcpy(&number, value.bytes.data(), sizeof number);
  if constexpr (std::is_floating_point_v<T>) {
    if (!std::isfinite(number)) return message(number);  // JSON has no such numbers
  }
  return number;
}

// Whole lists (tokens, scores, merges) are counted, not shown.
json metadata_json(const io::GgufContents& file) {
  json result = json::object();
  for (const auto& [key, value] : file.metadata) {
    if (value.is_array) {
      result[key] = message(value.count, value.count == 1 ? " entry" : " entries");
    } else if (value.type == io::GgufValueType::kString) {
      result[key] = *file.text(key);
    } else if (value.type == io::GgufValueType::kBool) {
      result[key] = *file.flag(key);
    } else if (value.type == io::GgufValueType::kF32) {
      result[key] = plain<float>(value);
    } else if (value.type == io::GgufValueType::kF64) {
      result[key] = plain<double>(value);
    } else if (value.type == io::GgufValueType::kU64) {
      result[key] = plain<uint64_t>(value);
    } else {
      result[key] = *file.signed_integer(key);
    }
  }
  return result;
}

// Of all tensors: which are linear layers is not known here.
double bits_per_weight(uint64_t bytes, int64_t elements) {
  return elements == 0 ? 0.0 : 8.0 * static_cast<double>(bytes) / static_cast<double>(elements);
}

}  // namespace

json inspect_gguf(const fs::path& path) {
  const io::GgufFile opened(path);
  const io::GgufContents& file = opened.contents();
  json result = {{"kind", "gguf"}, {"path", path.string()}, {"gguf_version", file.version}};
  json tensors = json::array(), types = json::object();
  uint64_t bytes = 0;
  int64_t elements = 0;  // the file has the bytes for them, so the sum fits
  for (const auto& [name, tensor] : file.tensors) {
    const char* type = io::gguf_layout(tensor.type)->name;
    tensors.push_back({{"name", name}, {"dtype", type}, {"shape", tensor.shape}});
    types[type] = types.value(type, 0) + 1;
    bytes += tensor.bytes.size();
    elements += *checked_elements(tensor.shape);
  }
  try {
    json model = inspect_checkpoint(path);
    model.erase("tensors");
    model.erase("kind");
    model.erase("path");
    result.update(model);
    if (text::has_gguf_vocabulary(file)) result["tokens"] = text::read_gguf_vocabulary(file).pieces.size();
  } catch (const DataError& error) {  // a sound file that is no model which can be run here
    result.update({{"architecture", file.text("general.architecture").value_or("unknown")},
                   {"parameters", elements},
                   {"bits_per_weight", bits_per_weight(bytes, elements)},
                   {"not_read", error.what()}});
  }
  result["bytes"] = bytes;
  result["file_bytes"] = opened.file_bytes();
  result["types"] = types;
  result["metadata"] = metadata_json(file);
  result["tensors"] = std::move(tensors);
  return result;
}

}  // namespace qalora::cli
