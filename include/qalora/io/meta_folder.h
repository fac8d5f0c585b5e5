// Meta's own release of LLaMA (and Mistral's, which has the same form): consolidated.NN.pth, each a slice of every
// matrix, and params.json. Seen from outside: Hugging Face's names, whole matrices, rows of q and k in Hugging Face's
// order.
#pragma once

#include <map>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "qalora/io/tensor_source.h"
#include "qalora/io/torch_file.h"

namespace qalora::io {

struct MetaParams;

class MetaFolder : public TensorSource {
 public:
  static bool exists(const fs::path& folder);
  static const char* config_file() { return "params.json"; }
  explicit MetaFolder(const fs::path& folder);
  ~MetaFolder() override;

  const std::map<std::string, TensorInfo>& tensors() const override { return tensors_; }
  at::Tensor read(const std::string& name) const override;    // joined from the slices; never more than one matrix
  TensorBytes bytes(const std::string& name) const override;  // in the map where nothing is to be joined or moved
  std::vector<TensorBytes> stored(const std::string& name) const override;  // a slice of each part
  void release(const std::string& name) const override;
  const fs::path& file_of(const std::string& name) const override { return shards_[0]->file_of(origin(name).name); }
  std::vector<fs::path> files() const override;

  nlohmann::json config() const;  // in Hugging Face's terms

 private:
  // How the slices of a matrix make the whole.
  enum class Join { kCopies, kRows, kColumns };
  struct Origin {
    std::string name;  // in the files
    Join join = Join::kCopies;
    int64_t heads = 0;  // of q and k: their rows are to be moved
  };

  void add(const std::string& name);
  Join embedding_join(const TensorInfo& slice) const;
  const Origin& origin(const std::string& name) const;
  int64_t size_of(const char* name, size_t dimension) const;

  fs::path folder_;
  std::unique_ptr<MetaParams> params_;
  std::vector<std::unique_ptr<TorchFile>> shards_;
  std::map<std::string, TensorInfo> tensors_;
  std::map<std::string, Origin> origins_;
};

}  // namespace qalora::io
