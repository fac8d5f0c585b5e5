#include "qalora/io/safetensors.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <nlohmann/json.hpp>
#include <set>

#include "qalora/core/checked.h"
#include "qalora/core/error.h"
#include "qalora/core/format.h"

namespace qalora::io {
namespace {

constexpr uint64_t kLengthBytes = 8;
constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // the reference reader's limit
constexpr size_t kMaxDepth = 64;                   // of JSON nesting in fields that nobody reads

// Part of the format, but nothing in a LLaMA is stored in them.
const std::set<std::string> kKnownUnsupported = {"F4",          "F6_E2M3",     "F6_E3M2", "F8_E4M3", "F8_E5M2",
                                                 "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F8_E8M0", "C64"};

std::string shape_text(std::span<const int64_t> shape) {
  std::vector<std::string> parts;
  for (int64_t dimension : shape) parts.push_back(std::to_string(dimension));
  return "[" + join(parts, ", ") + "]";
}

// What a file is that does not begin like safetensors, with what to do; "" when it looks like nothing known.
std::string foreign_format(std::string_view start) {
  const std::string convert = "; convert the model to safetensors first, with the software that wrote it";
  if (start.starts_with("version https://git-lfs")) {
    return "this is a Git LFS pointer, not the weights themselves; run 'git lfs pull' in the folder it came from";
  }
  if (start.starts_with("PK\x03\x04")) return "this is a zip archive, probably a PyTorch checkpoint" + convert;
  if (start.starts_with("\x80\x02"))
    return "this is a Python pickle, probably an old PyTorch checkpoint, and is never opened" + convert;
  if (start.starts_with("GGUF")) return "this is a GGUF file" + convert;
  if (start.starts_with("\x1f\x8b") || start.starts_with("\x28\xb5\x2f\xfd"))
    return "this file is compressed; unpack it first";
  if (start.starts_with("<!") || start.starts_with("<htm")) return "this is a web page; the download went wrong";
  return "";
}

// Collects the header's entries. A streaming handler, because a document tree keeps the last of two equal names
// silently.
class HeaderReader : public nlohmann::json_sax<nlohmann::json> {
 public:
  HeaderReader(std::string path, std::map<std::string, TensorInfo>& tensors,
               std::map<std::string, std::string>& metadata)
      : path_(std::move(path)),
        tensors_(tensors),
        metadata_(metadata) {}

  bool null() override {
    const bool absent_metadata = depth_ == 1 && in_metadata_;
    if (!absent_metadata) scalar("null");
    return true;
  }
  bool boolean(bool) override { return scalar("a boolean"); }
  bool number_integer(number_integer_t value) override {
    return scalar("the negative number " + std::to_string(value));
  }
  bool number_float(number_float_t, const string_t& text) override { return scalar("the number " + text); }
  bool binary(binary_t&) override { return scalar("binary data"); }

  bool number_unsigned(number_unsigned_t value) override {
    if (depth_ == 3 && list_ == &shape_) {
      QALORA_REQUIRE(value <= static_cast<uint64_t>(INT64_MAX), DataError, where(), "dimension ", value,
                     " is too large");
    }
    if (depth_ != 3 || list_ == nullptr) return scalar("the number " + std::to_string(value));
    list_->push_back(value);
    return true;
  }

  bool string(string_t& value) override {
    if (depth_ == 2 && in_metadata_) {
      metadata_[field_] = value;
    } else if (depth_ == 2 && field_ == "dtype") {
      dtype_ = value;
    } else {
      scalar("the text '" + value + "'");
    }
    return true;
  }

  bool start_object(size_t) override {
    const bool expected = depth_ == 0 || depth_ == 1 || ignored();
    QALORA_REQUIRE(expected, DataError, where(),
                   in_metadata_ ? "metadata must be text, got an object" : "an object where none belongs");
    if (depth_ == 1 && !in_metadata_) {
      shape_.clear();
      offsets_.clear();
      dtype_.reset();
      fields_.clear();
    }
    return enter();
  }

  bool key(string_t& value) override {
    if (depth_ == 1) {
      in_metadata_ = value == "__metadata__";
      tensor_ = value;
      const bool fresh = names_.insert(value).second;
      QALORA_REQUIRE(fresh, DataError, path_, ": the name '", value, "' stands twice in the header");
    } else if (depth_ == 2) {
      field_ = value;
      const bool fresh = fields_.insert(value).second;
      QALORA_REQUIRE(fresh, DataError, where(), "the key '", value, "' stands twice");
    }
    return true;
  }

  bool end_object() override {
    --depth_;
    if (depth_ == 1 && !in_metadata_) finish_tensor();
    if (depth_ == 1) fields_.clear();
    return true;
  }

  bool start_array(size_t) override {
    list_ = nullptr;
    if (depth_ == 2 && !in_metadata_ && field_ == "shape") list_ = &shape_;
    if (depth_ == 2 && !in_metadata_ && field_ == "data_offsets") list_ = &offsets_;
    if (list_ == nullptr) {
      QALORA_REQUIRE(ignored(), DataError, where(),
                     in_metadata_ ? "metadata must be text, got a list" : "a list where none belongs");
    }
    return enter();
  }

  bool end_array() override {
    --depth_;
    if (depth_ == 2) list_ = nullptr;
    return true;
  }

  bool parse_error(size_t position, const std::string&, const nlohmann::json::exception&) override {
    throw DataError(message(path_, ": the header is not valid JSON at byte ", kLengthBytes + position,
                            "; the file is damaged, download or write it again"));
  }

 private:
  // Inside a field of a tensor's entry that the format does not define: the reference reader skips those.
  bool ignored() const {
    return depth_ >= 2 && !in_metadata_ && list_ == nullptr && field_ != "dtype" && field_ != "shape" &&
           field_ != "data_offsets";
  }

  bool enter() {
    QALORA_REQUIRE(++depth_ <= kMaxDepth, DataError, where(), "the header is nested more than ", kMaxDepth,
                   " levels deep");
    return true;
  }

  bool scalar(const std::string& what) {
    if (!ignored()) {
      const std::string place = depth_ >= 2 ? message("'", field_, "' holds ") : std::string("the entry is ");
      throw DataError(message(where(), place, what, in_metadata_ ? "; metadata must be text" : ""));
    }
    return true;
  }

  std::string where() const {
    if (depth_ == 0) return path_ + ": ";
    return in_metadata_ ? path_ + ": __metadata__: " : message(path_, ": tensor '", tensor_, "': ");
  }

  void finish_tensor() {
    for (const char* field : {"dtype", "shape", "data_offsets"}) {
      QALORA_REQUIRE(fields_.contains(field), DataError, where(), "has no '", field, "'");
    }
    QALORA_REQUIRE(dtype_.has_value(), DataError, where(), "'dtype' must be text");
    QALORA_REQUIRE(offsets_.size() == 2, DataError, where(), "data_offsets must be two numbers, got ", offsets_.size());
    TensorInfo info;
    info.dtype = find_dtype(*dtype_);
    info.shape.assign(shape_.begin(), shape_.end());
    info.begin = offsets_[0];
    info.end = offsets_[1];
    tensors_[tensor_] = std::move(info);
  }

  Dtype find_dtype(const std::string& name) const {
    if (const auto found = dtype_named(name)) return *found;
    const char* what = kKnownUnsupported.contains(name) ? "is not supported" : "is not known";
    throw DataError(message(where(), "dtype '", name, "' ", what, "; expected F32, F16, BF16 or an integer type"));
  }

  std::string path_;
  std::map<std::string, TensorInfo>& tensors_;
  std::map<std::string, std::string>& metadata_;
  size_t depth_ = 0;
  bool in_metadata_ = false;
  std::string tensor_, field_;
  std::set<std::string> names_, fields_;
  std::optional<std::string> dtype_;
  std::vector<uint64_t> shape_, offsets_;
  std::vector<uint64_t>* list_ = nullptr;
};

// Tensors must follow one another from byte 0 to the end of the file, each as long as its shape says.
void check_layout(const std::string& path, const std::map<std::string, TensorInfo>& tensors, uint64_t data_bytes) {
  std::vector<std::pair<const std::string*, const TensorInfo*>> order;
  for (const auto& [name, info] : tensors) order.emplace_back(&name, &info);
  std::sort(order.begin(), order.end(), [](const auto& a, const auto& b) {
    return std::pair(a.second->begin, a.second->end) < std::pair(b.second->begin, b.second->end);
  });
  uint64_t expected = 0;
  for (const auto& [name, info] : order) {
    const std::string where = message(path, ": tensor '", *name, "': ");
    QALORA_REQUIRE(info->end >= info->begin, DataError, where, "ends at byte ", info->end, " before its begin ",
                   info->begin);
    QALORA_REQUIRE(info->begin == expected, DataError, where, "begins at byte ", info->begin, " of the data, expected ",
                   expected, "; tensors must neither overlap nor leave gaps");
    const auto elements = checked_elements(info->shape);
    QALORA_REQUIRE(elements.has_value(), DataError, where, "shape ", shape_text(info->shape), " overflows");
    const auto bytes = checked_mul(static_cast<uint64_t>(*elements), static_cast<uint64_t>(dtype_bytes(info->dtype)));
    QALORA_REQUIRE(bytes.has_value(), DataError, where, "shape ", shape_text(info->shape), " overflows");
    QALORA_REQUIRE(*bytes == info->bytes(), DataError, where, "shape ", shape_text(info->shape), " of ",
                   dtype_name(info->dtype), " needs ", *bytes, " bytes, its offsets span ", info->bytes());
    expected = info->end;
  }
  QALORA_REQUIRE(expected <= data_bytes, DataError, path, ": the header promises ", expected,
                 " bytes of tensors, the file has ", data_bytes, "; incomplete download? fetch it again");
  QALORA_REQUIRE(expected == data_bytes, DataError, path, ": ", data_bytes - expected,
                 " bytes follow the last tensor; the file is damaged, fetch or write it again");
}

}  // namespace

SafetensorsFile::SafetensorsFile(const fs::path& path) : map_(path) {
  const std::string name = path.string();
  const auto bytes = map_.bytes();
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  const std::string foreign = foreign_format(text.substr(0, 32));
  const std::string hint = foreign.empty() ? "not a safetensors file, or a damaged one" : foreign;
  QALORA_REQUIRE(bytes.size() >= kLengthBytes, DataError, name, ": the file has ", bytes.size(),
                 " bytes, too few for safetensors; incomplete download?");
  uint64_t length = 0;
  std::memcpy(&length, bytes.data(), kLengthBytes);
  QALORA_REQUIRE(length <= kMaxHeaderBytes, DataError, name, ": ",
                 foreign.empty()
                     ? message("the header claims ", length, " bytes, the limit is ", kMaxHeaderBytes, "; ", hint)
                     : hint);
  QALORA_REQUIRE(length <= bytes.size() - kLengthBytes, DataError, name, ": the header claims ", length,
                 " bytes, the file has ", bytes.size() - kLengthBytes, "; ",
                 foreign.empty() ? "incomplete download?" : foreign);
  const std::string_view header = text.substr(kLengthBytes, length);
  QALORA_REQUIRE(valid_utf8(header), DataError, name, ": the header is not UTF-8; the file is damaged");
  // The JSON library takes a zero byte for the end and skips a byte-order mark; the format allows neither.
  const size_t start = header.find_first_not_of(" \t\r\n");
  const bool object =
      start != std::string_view::npos && header[start] == '{' && header.find('\0') == std::string_view::npos;
  QALORA_REQUIRE(object, DataError, name,
                 ": the header is not a JSON object; the file is damaged, download or write it again");
  HeaderReader reader(name, tensors_, metadata_);
  nlohmann::json::sax_parse(header.begin(), header.end(), &reader);
  data_begin_ = kLengthBytes + length;
  check_layout(name, tensors_, bytes.size() - data_begin_);
}

TensorBytes SafetensorsFile::bytes(const std::string& name) const {
  const TensorInfo& tensor = info(name);
  return {{}, map_.bytes().subspan(data_begin_ + tensor.begin, tensor.bytes())};
}

at::Tensor SafetensorsFile::read(const std::string& name) const {
  const TensorInfo& tensor = info(name);
  // An empty tensor may have other dimensions whose strides overflow although its size does not.
  std::vector<int64_t> strides(tensor.shape);
  for (int64_t& dimension : strides) dimension = std::max<int64_t>(dimension, 1);
  QALORA_REQUIRE(checked_elements(strides).has_value(), DataError, path().string(), ": tensor '", name, "': shape ",
                 shape_text(tensor.shape), " overflows");
  at::Tensor result = at::empty(tensor.shape, at::dtype(scalar_type(tensor.dtype)));
  const auto source = bytes(name).span;
  if (!source.empty()) std::memcpy(result.data_ptr(), source.data(), source.size());
  return result;
}

void SafetensorsFile::release(const std::string& name) const { map_.release(bytes(name).span); }

}  // namespace qalora::io
