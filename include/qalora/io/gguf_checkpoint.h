// A model in a GGUF file, in the canonical form: Hugging Face's names and row order, blocks as packed codes with f32
// scales and offsets.
#pragma once

#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "qalora/io/gguf_file.h"
#include "qalora/io/tensor_source.h"

namespace qalora::io {

// Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0 projections stay quantised, in groups of 32, without any loss: codes of 4, 5 or 8
// bits. A quantised embedding or head becomes F32. F32, F16 and BF16 stay what they are.
class GgufCheckpoint : public TensorSource {
 public:
  // DataError names file and tensor: another architecture, a type that is not read, a tensor that no model here has.
  explicit GgufCheckpoint(const fs::path& path);

  const std::map<std::string, TensorInfo>& tensors() const override { return tensors_; }
  at::Tensor read(const std::string& name) const override;
  TensorBytes bytes(const std::string& name) const override;
  std::vector<TensorBytes> stored(const std::string& name) const override;
  void release(const std::string& name) const override;
  const fs::path& file_of(const std::string& name) const override { return file_.path(); }
  std::vector<fs::path> files() const override { return {file_.path()}; }

  const nlohmann::json& config() const { return config_; }  // with "quantization" where projections are packed
  const GgufFile& file() const { return file_; }

 private:
  enum class Part { kStored, kValues, kCodes, kScales, kOffsets };
  struct Place {
    const GgufTensor* tensor = nullptr;
    Part part = Part::kStored;
    bool permuted = false;  // rows of q or k in the file's order
  };

  void add(const std::string& name, const GgufTensor& tensor);
  void add_quantization();
  void add_part(const std::string& name, const Place& place, Dtype dtype, std::vector<int64_t> shape);
  const Place& place_of(const std::string& name) const;

  GgufFile file_;
  nlohmann::json config_;
  std::string architecture_;
  int64_t head_dim_ = 0;
  std::map<std::string, TensorInfo> tensors_;
  std::map<std::string, Place> places_;
};

}  // namespace qalora::io
