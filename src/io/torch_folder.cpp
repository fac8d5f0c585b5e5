#include "qalora/io/torch_folder.h"

#include <algorithm>
#include <array>

#include "qalora/core/error.h"
#include "qalora/core/format.h"
#include "qalora/io/torch_file.h"

namespace qalora::io {
namespace {

constexpr std::string_view kIndexEnding = ".bin.index.json";

// What training leaves beside the weights.
constexpr std::array<std::string_view, 9> kNoWeights = {"training_args.bin", "optimizer.bin",     "optimizer.pt",
                                                        "scheduler.bin",     "scheduler.pt",      "rng_state.pt",
                                                        "scaler.pt",         "adapter_model.bin", "latest.pt"};

bool is_weights(const std::string& name) {
  const bool known_ending = name.ends_with(".bin") || name.ends_with(".pt");
  return known_ending && std::find(kNoWeights.begin(), kNoWeights.end(), name) == kNoWeights.end();
}

// The files of which one is to be opened: the usual names first, then indexes, then any file of weights.
std::vector<std::string> candidates(const fs::path& folder) {
  const std::vector<std::string> names = list_folder(folder);
  for (const char* usual : {"pytorch_model.bin", "pytorch_model.bin.index.json"}) {
    if (std::find(names.begin(), names.end(), usual) != names.end()) return {usual};
  }
  std::vector<std::string> indexes, files;
  for (const std::string& name : names) {
    if (name.ends_with(kIndexEnding)) indexes.push_back(name);
    if (is_weights(name)) files.push_back(name);
  }
  return indexes.empty() ? files : indexes;
}

fs::path only_one(const fs::path& folder) {
  const auto found = candidates(folder);
  QALORA_REQUIRE(!found.empty(), DataError, folder.string(), ": there are no PyTorch weights in it");
  QALORA_REQUIRE(found.size() == 1, DataError, folder.string(), ": there is no pytorch_model.bin, but ",
                 join(found, ", "), "; leave one of them in the folder, or name it pytorch_model.bin");
  return folder / found[0];
}

}  // namespace

bool TorchFolder::exists(const fs::path& folder) { return !candidates(folder).empty(); }

TorchFolder::TorchFolder(const fs::path& folder)
    : Shards(only_one(folder), ".bin", [](const fs::path& path) { return std::make_unique<TorchFile>(path); }) {}

}  // namespace qalora::io
