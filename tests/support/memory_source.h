// Tensors in memory as a source of them, as if a file held them.
#pragma once

#include <ATen/ATen.h>

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "qalora/io/tensor_source.h"

namespace qalora::test {

class MemorySource : public io::TensorSource {
 public:
  explicit MemorySource(std::map<std::string, at::Tensor> tensors) : tensors_(std::move(tensors)) {
    for (const auto& [name, tensor] : tensors_)
      infos_[name] = {io::dtype_of(tensor.scalar_type()), tensor.sizes().vec(), 0, tensor.nbytes()};
  }

  const std::map<std::string, io::TensorInfo>& tensors() const override { return infos_; }
  at::Tensor read(const std::string& name) const override {
    info(name);
    return tensors_.at(name).clone();
  }
  const std::filesystem::path& file_of(const std::string&) const override { return path_; }
  std::vector<std::filesystem::path> files() const override { return {path_}; }

 private:
  std::map<std::string, at::Tensor> tensors_;
  std::map<std::string, io::TensorInfo> infos_;
  std::filesystem::path path_ = "memory.safetensors";
};

}  // namespace qalora::test
