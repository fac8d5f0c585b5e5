// Checkpoints that GPTQ's and AWQ's packages wrote, seen as canonical ones (tensor_source.h). For a linear layer P
//   P.qweight, P.qzeros, P.scales (, P.g_idx, P.bias)
//   ->  P.weight U32, P.scales F32, P.biases F32 (, P.g_idx I32, P.bias)
// The weight scale * (code - zero) becomes scale * code + offset with offset = -(scale * zero), one product in fp32.
// With scales in 16 bits that product is exact, so that the dequantised weights are the package's to the last bit. A
// zero point can be had back from an offset that nobody moved: zero = round(-offset / scale), and it was one if and
// only if 0 <= zero <= 2^bits and -(scale * zero) in fp32 is the offset to the last bit. (Of a scale of 0 every zero
// point is; take 0.)
//
// Nothing is converted before it is asked for: a read turns one tensor, by all threads, and needs no memory beside it
// but a tile a thread.
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "qalora/io/foreign_quantization.h"
#include "qalora/io/tensor_source.h"

namespace qalora::io {

class GptqView : public TensorSource {
 public:
  // Does the source hold a tensor of these layouts ("P.qweight")?
  static bool is_packed(const TensorSource& raw);

  // has_bias(module): whether the architecture has one there. A bias of zeros where it has none, as AutoGPTQ writes, is
  // left out. Checks every shape, and every g_idx; DataError naming file and tensor.
  GptqView(std::unique_ptr<TensorSource> raw, ForeignQuantization quantization,
           const std::function<bool(const std::string&)>& has_bias);

  const std::map<std::string, TensorInfo>& tensors() const override { return tensors_; }
  at::Tensor read(const std::string& name) const override;
  TensorBytes bytes(const std::string& name) const override;
  std::vector<TensorBytes> stored(const std::string& name) const override;
  void release(const std::string& name) const override;
  const fs::path& file_of(const std::string& name) const override;
  std::vector<fs::path> files() const override { return raw_->files(); }

  // As MLX's "quantization" in config.json has it, with an entry for each module that differs.
  nlohmann::json quantization() const;
  const ForeignQuantization& stored_as() const { return quantization_; }

 private:
  struct Module {
    int64_t in_features = 0, out_features = 0, groups = 0, group_size = 0;
    int bits = 0;
    at::Tensor order;  // io::input_order
  };
  enum class Part { kCodes, kScales, kOffsets, kGroups };
  struct Place {
    std::string module;
    Part part;
  };

  std::string stored_name(const std::string& name) const;  // of the tensor that this one is made of
  Module check_module(const std::string& name) const;
  void read_groups(const std::string& name, Module& module) const;
  void add(const std::string& name, Dtype dtype, std::vector<int64_t> shape, const Place& place);
  bool is_empty_bias(const std::string& name) const;
  const TensorInfo& part_info(const std::string& tensor, std::initializer_list<Dtype> dtypes) const;
  at::Tensor read_codes(const std::string& name, const Module& module) const;
  at::Tensor read_scales(const std::string& name) const;
  at::Tensor read_offsets(const std::string& name, const Module& module) const;

  std::unique_ptr<TensorSource> raw_;
  ForeignQuantization quantization_;
  std::map<std::string, Module> modules_;
  std::map<std::string, Place> places_;  // of the tensors that are made here
  std::map<std::string, TensorInfo> tensors_;
  mutable std::atomic<bool> warned_ = false;
};

}  // namespace qalora::io
