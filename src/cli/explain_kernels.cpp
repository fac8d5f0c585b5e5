#include "explain_kernels.h"

#include <algorithm>
#include <vector>

#include "qalora/core/error.h"
#include "qalora/core/format.h"
#include "qalora/kernels/cuda_table.h"
#include "qalora/model/load.h"

namespace qalora::cli {

using nlohmann::json;

json explain_kernels(const fs::path& folder, int architecture) {
  const model::LlamaConfig config = model::read_config(folder);
  QALORA_REQUIRE(config.quantization.has_value(), UserError, folder.string(),
                 ": is a dense checkpoint: its layers run in the library's products; ",
                 "--explain-kernels is for a quantised one");
  json layers = json::array();
  for (const model::ExpectedTensor& tensor : model::expected_tensors(config)) {
    if (!tensor.linear) continue;
    const int64_t out_features = tensor.shape[0], in_features = tensor.shape[1];
    const std::string module = io::module_of(tensor.name);
    const int bits = config.quantization->of(module).bits;
    const int64_t group_size = config.quantization->group_size_of(module, in_features);
    const std::string lines = kernels::cuda::explain({out_features, in_features, group_size, bits},
                                                     kernels::cuda::Type::kBFloat16, architecture);
    const json kernels = split(lines.substr(0, lines.size() - 1), '\n');
    const std::string shape = message(out_features, " x ", in_features);
    const auto alike = std::find_if(layers.begin(), layers.end(), [&](const json& layer) {
      return layer.at("kernels") == kernels && layer.at("group_size") == group_size && layer.at("bits") == bits;
    });
    if (alike == layers.end()) {
      layers.push_back({{"shapes", {shape}}, {"bits", bits}, {"group_size", group_size}, {"kernels", kernels}});
    } else if (std::find(alike->at("shapes").begin(), alike->at("shapes").end(), shape) == alike->at("shapes").end()) {
      alike->at("shapes").push_back(shape);
    }
  }
  return {{"kind", "kernels"}, {"path", folder.string()}, {"architecture", architecture}, {"layers", layers}};
}

std::string explain_kernels_text(const json& document) {
  const int architecture = document.at("architecture");
  std::string text = message(document.at("path").get<std::string>(), ": kernels on a device of compute capability ",
                             architecture / 10, ".", architecture % 10, ", products in bfloat16\n");
  for (const json& layer : document.at("layers")) {
    text += message("\n  ", join(layer.at("shapes").get<std::vector<std::string>>(), ", "), "; ",
                    layer.at("bits").get<int>(), " bits, groups of ", layer.at("group_size").get<int64_t>(), "\n");
    for (const json& line : layer.at("kernels")) text += "    " + line.get<std::string>() + "\n";
  }
  return text + "\nIn float32 every product dequantises and takes the library's.\n";
}

}  // namespace qalora::cli
