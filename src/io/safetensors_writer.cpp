#include <ATen/ATen.h>

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>

#include "qalora/core/checked.h"
#include "qalora/core/error.h"
#include "qalora/core/format.h"
#include "qalora/io/safetensors.h"

namespace qalora::io {
namespace {

// 8 bytes of length and the JSON header, padded with blanks so that the data begins at a multiple of 8.
std::string header_bytes(const std::vector<PlannedTensor>& plan, const std::map<std::string, std::string>& metadata) {
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (metadata.empty()) {
    header["__metadata__"] = {{"format", "pt"}};  // what Hugging Face's loader asks for
  } else {
    header["__metadata__"] = metadata;
  }
  uint64_t begin = 0;
  for (const auto& tensor : plan) {
    QALORA_CHECK(!header.contains(tensor.name), "tensor '", tensor.name, "' is planned twice");
    const auto end = checked_add(begin, tensor.bytes());
    QALORA_CHECK(end.has_value(), "tensor '", tensor.name, "'");
    header[tensor.name] = {
        {"dtype", dtype_name(tensor.dtype)}, {"shape", tensor.shape}, {"data_offsets", {begin, *end}}};
    begin = *end;
  }
  // A path in the metadata may hold any bytes; what is not UTF-8 is replaced.
  std::string text = header.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
  text.append((8 - text.size() % 8) % 8, ' ');
  const uint64_t length = text.size();
  std::string result(sizeof(length), '\0');
  std::memcpy(result.data(), &length, sizeof(length));
  return result + text;
}

}  // namespace

uint64_t PlannedTensor::bytes() const {
  const auto elements = checked_elements(shape);
  QALORA_CHECK(elements.has_value(), "the shape of tensor '", name, "' overflows");
  const auto result = checked_mul(static_cast<uint64_t>(*elements), static_cast<uint64_t>(dtype_bytes(dtype)));
  QALORA_CHECK(result.has_value(), "the size of tensor '", name, "' overflows");
  return *result;
}

SafetensorsWriter::SafetensorsWriter(const fs::path& path, std::vector<PlannedTensor> plan,
                                     const std::map<std::string, std::string>& metadata)
    : plan_(std::move(plan)),
      file_(path) {
  file_.write(header_bytes(plan_, metadata));
}

SafetensorsWriter::~SafetensorsWriter() = default;

void SafetensorsWriter::write(const std::string& name, std::span<const std::byte> bytes) {
  QALORA_CHECK(next_ < plan_.size(), "tensor '", name, "' comes after the last one planned");
  const PlannedTensor& expected = plan_[next_];
  QALORA_CHECK(name == expected.name, "tensor '", name, "' comes where '", expected.name, "' is planned");
  QALORA_CHECK(bytes.size() == expected.bytes(), "tensor '", name, "': ", bytes.size(), " bytes, planned ",
               expected.bytes());
  file_.write(bytes);
  ++next_;
}

void SafetensorsWriter::write(const std::string& name, const at::Tensor& tensor) {
  QALORA_CHECK(next_ < plan_.size(), "tensor '", name, "' comes after the last one planned");
  const PlannedTensor& expected = plan_[next_];
  QALORA_CHECK(tensor.scalar_type() == scalar_type(expected.dtype), "tensor '", name, "' is ",
               c10::toString(tensor.scalar_type()));
  QALORA_CHECK(tensor.sizes() == at::IntArrayRef(expected.shape), "tensor '", name, "' has another shape than planned");
  write(name, tensor_bytes(tensor));
}

void SafetensorsWriter::finish() {
  QALORA_CHECK(next_ == plan_.size(), next_, " of ", plan_.size(), " tensors were written");
  file_.commit();
}

void write_safetensors(const fs::path& path, const std::map<std::string, at::Tensor>& tensors,
                       const std::map<std::string, std::string>& metadata) {
  std::vector<PlannedTensor> plan;
  for (const auto& [name, tensor] : tensors)
    plan.push_back({name, dtype_of(tensor.scalar_type()), tensor.sizes().vec()});
  sort_by_alignment(plan);
  SafetensorsWriter writer(path, plan, metadata);
  for (const auto& planned : plan) writer.write(planned.name, tensors.at(planned.name).to(at::kCPU).contiguous());
  writer.finish();
}

void sort_by_alignment(std::vector<PlannedTensor>& plan) {
  std::stable_sort(plan.begin(), plan.end(),
                   [](const auto& a, const auto& b) { return dtype_bytes(a.dtype) > dtype_bytes(b.dtype); });
}

}  // namespace qalora::io
