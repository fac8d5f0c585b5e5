// A configuration, a line break, and tensors of one linear layer: [part][dtype][dimensions][each: 2 bytes,
// little-endian][how it is filled].
#include <ATen/ATen.h>

#include <map>
#include <nlohmann/json.hpp>

#include "input.h"
#include "qalora/io/gptq_view.h"
#include "read_all.h"
#include "support/memory_source.h"

namespace qalora::fuzz {
namespace {

class Bytes {
 public:
  Bytes(const uint8_t* data, size_t size) : data_(data), size_(size) {}
  bool done() const { return at_ >= size_; }
  int next() { return done() ? 0 : data_[at_++]; }

 private:
  const uint8_t* data_;
  size_t size_, at_ = 0;
};

constexpr int64_t kMostElements = int64_t{1} << 16;

// Empty where the tensor would be large: a file of this size could not hold it.
at::Tensor next_tensor(Bytes& bytes) {
  static const at::ScalarType kTypes[] = {at::kInt, at::kHalf, at::kFloat, at::kLong, at::kBFloat16, at::kByte};
  const at::ScalarType type = kTypes[bytes.next() % 6];
  std::vector<int64_t> shape(static_cast<size_t>(bytes.next() % 4));
  int64_t elements = 1;
  for (int64_t& size : shape) {
    size = bytes.next();
    size |= int64_t{bytes.next()} << 8;
    elements *= std::max<int64_t>(size, 1);
  }
  const int fill = bytes.next();
  if (elements > kMostElements) return {};
  const at::Tensor tensor = at::arange(c10::multiply_integers(shape), at::kLong);
  if (fill < 8) return tensor.floor_divide(32).to(type).reshape(shape);           // a plain grouping
  if (fill < 16) return tensor.flip(0).floor_divide(32).to(type).reshape(shape);  // a sorted one
  return (tensor * 2654435761 * fill).to(at::kInt).to(type).reshape(shape);
}

void run(const uint8_t* data, size_t size) {
  static const InputFolder folder;
  const std::string_view all = text(data, size), config = all.substr(0, all.find('\n'));
  folder.put("quantize_config.json", config);
  Bytes bytes(data + std::min(config.size() + 1, size), size - std::min(config.size() + 1, size));
  std::map<std::string, at::Tensor> tensors;
  static const char* kParts[] = {".qweight", ".qzeros", ".scales", ".g_idx", ".bias", ".weight"};
  while (!bytes.done()) {
    const int part = bytes.next();
    const at::Tensor tensor = next_tensor(bytes);
    if (tensor.defined())
      tensors["model.layers." + std::to_string(part / 6 % 3) + ".mlp.up_proj" + kParts[part % 6]] = tensor;
  }
  const io::ForeignQuantization quantization = io::read_foreign_quantization(folder.path(), nullptr);
  const auto has_bias = [](const std::string& module) { return module.find('1') != module.npos; };
  const io::GptqView view(std::make_unique<test::MemorySource>(tensors), quantization, has_bias);
  read_all(view);
  view.quantization().dump();
}

}  // namespace
}  // namespace qalora::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  return qalora::fuzz::attempt([&] { qalora::fuzz::run(data, size); });
}
