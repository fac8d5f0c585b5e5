#include "qalora/io/gguf_writer.h"

#include <array>

#include "qalora/core/checked.h"
#include "qalora/core/error.h"

namespace qalora::io {
namespace {

constexpr uint64_t kAlignment = 32;  // the format's default, so no key names it
constexpr uint32_t kVersion = 3;

uint64_t padding(uint64_t size) { return (kAlignment - size % kAlignment) % kAlignment; }

template <typename T>
void append(std::string& bytes, T value) {
  bytes.append(reinterpret_cast<const char*>(&value), sizeof value);
}

void append_string(std::string& bytes, std::string_view text) {
  append(bytes, static_cast<uint64_t>(text.size()));
  bytes += text;
}

std::string header(const GgufMetadata& metadata, const std::vector<GgufPlanned>& plan) {
  std::string bytes = "GGUF";
  append(bytes, kVersion);
  append(bytes, static_cast<uint64_t>(plan.size()));
  append(bytes, metadata.count());
  bytes += metadata.bytes();
  uint64_t offset = 0;
  for (const GgufPlanned& tensor : plan) {
    append_string(bytes, tensor.name);
    append(bytes, static_cast<uint32_t>(tensor.shape.size()));
    for (size_t i = tensor.shape.size(); i-- > 0;) append(bytes, static_cast<uint64_t>(tensor.shape[i]));
    append(bytes, static_cast<uint32_t>(tensor.type));
    append(bytes, offset);
    offset += tensor.bytes() + padding(tensor.bytes());
  }
  bytes.append(padding(bytes.size()), '\0');
  return bytes;
}

}  // namespace

void GgufMetadata::begin(std::string_view key, GgufValueType type) {
  ++count_;
  string(key);
  number(static_cast<uint32_t>(type));
}

void GgufMetadata::begin_array(std::string_view key, GgufValueType type, size_t count) {
  begin(key, GgufValueType::kArray);
  number(static_cast<uint32_t>(type));
  number(static_cast<uint64_t>(count));
}

template <typename T>
void GgufMetadata::number(T value) {
  append(bytes_, value);
}

void GgufMetadata::string(std::string_view value) { append_string(bytes_, value); }

void GgufMetadata::text(std::string_view key, std::string_view value) {
  begin(key, GgufValueType::kString);
  string(value);
}

void GgufMetadata::u32(std::string_view key, int64_t value) {
  QALORA_CHECK(value >= 0 && value <= UINT32_MAX, key, " is ", value);
  begin(key, GgufValueType::kU32);
  number(static_cast<uint32_t>(value));
}

void GgufMetadata::f32(std::string_view key, double value) {
  begin(key, GgufValueType::kF32);
  number(static_cast<float>(value));
}

void GgufMetadata::flag(std::string_view key, bool value) {
  begin(key, GgufValueType::kBool);
  number(static_cast<uint8_t>(value ? 1 : 0));
}

void GgufMetadata::texts(std::string_view key, const std::vector<std::string>& values) {
  begin_array(key, GgufValueType::kString, values.size());
  for (const std::string& value : values) string(value);
}

void GgufMetadata::floats(std::string_view key, const std::vector<float>& values) {
  begin_array(key, GgufValueType::kF32, values.size());
  for (const float value : values) number(value);
}

void GgufMetadata::i32s(std::string_view key, const std::vector<int32_t>& values) {
  begin_array(key, GgufValueType::kI32, values.size());
  for (const int32_t value : values) number(value);
}

uint64_t GgufPlanned::bytes() const {
  const GgufLayout& layout = gguf_layout(type);
  const auto elements = checked_elements(shape);
  QALORA_CHECK(elements && !shape.empty() && shape.size() <= 4 && shape.back() % layout.block_elements == 0, "'", name,
               "' has a shape that ", layout.name, " holds");
  return static_cast<uint64_t>(*elements) / layout.block_elements * layout.block_bytes;
}

uint64_t gguf_file_bytes(const GgufMetadata& metadata, const std::vector<GgufPlanned>& plan) {
  uint64_t total = header(metadata, plan).size();
  for (const GgufPlanned& tensor : plan) total += tensor.bytes() + padding(tensor.bytes());
  return total;
}

GgufWriter::GgufWriter(const fs::path& path, const GgufMetadata& metadata, std::vector<GgufPlanned> plan)
    : plan_(std::move(plan)),
      file_(path) {
  for (const GgufPlanned& tensor : plan_)
    QALORA_CHECK(tensor.name.size() < 64, "'", tensor.name, "' fits into the format's 63 letters");
  file_.write(header(metadata, plan_));
}

void GgufWriter::write(const std::string& name, std::span<const std::byte> piece) {
  QALORA_CHECK(next_ < plan_.size() && plan_[next_].name == name, "'", name, "' is the next tensor of the plan");
  const uint64_t whole = plan_[next_].bytes();
  QALORA_CHECK(piece.size() <= whole - written_, "'", name, "' has ", whole, " bytes");
  file_.write(piece);
  written_ += piece.size();
  if (written_ < whole) return;
  static constexpr std::array<std::byte, kAlignment> kZeros = {};
  file_.write(std::span(kZeros).first(padding(whole)));  // behind the last one too: readers take padded sizes
  ++next_;
  written_ = 0;
}

void GgufWriter::finish() {
  QALORA_CHECK(next_ == plan_.size(), plan_.size() - next_, " tensors are missing");
  file_.commit();
}

}  // namespace qalora::io
