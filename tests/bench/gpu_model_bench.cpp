// Whole models on the device at hand, beside the goals of the project.  gpu_model_bench CASE  -> one JSON document;
// without CASE: the cases' names. One case a process: the peak of its memory is its own.
#include <cstdio>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <string>

#include "bench/model_bench.h"
#include "qalora/tensor/accelerator.h"

namespace {

using namespace qalora;
using nlohmann::json;

struct Case {
  bench::ModelBench bench;
  std::string figure;  // key of the result
  double goal = 0;     // 0: a yardstick
  bool at_most = false;
};

const std::map<std::string, Case>& cases() {
  static const std::map<std::string, Case> all = [] {
    std::map<std::string, Case> result;
    bench::ModelBench seven;
    seven.config = bench::llama_shape(7);
    result["7b-finetune"] = {seven, "tokens_per_second", 20000};
    bench::ModelBench dense = seven;
    dense.bits = 0;
    result["7b-dense"] = {dense, "tokens_per_second"};
    bench::ModelBench small = seven;
    small.rows = 1, small.row_tokens = 512, small.recompute = model::Recompute::kLayer, small.steps = 2;
    result["7b-512-tokens"] = {small, "peak_bytes", 8e9, /*at_most=*/true};
    for (const int bits : {4, 2}) {
      bench::ModelBench decode = seven;
      decode.bits = bits, decode.steps = 0, decode.decode_tokens = 256;
      result["7b-decode-int" + std::to_string(bits)] = {decode, "decode_tokens_per_second", bits == 4 ? 600.0 : 0.0};
    }
    bench::ModelBench seventy;
    seventy.config = bench::llama_shape(70);
    seventy.rows = 2, seventy.micro_batches = 4, seventy.recompute = model::Recompute::kLayer, seventy.steps = 1;
    result["70b-finetune"] = {seventy, "peak_bytes", 70e9, /*at_most=*/true};
    return result;
  }();
  return all;
}

int run(const std::string& name) {
  std::string problem;
  const tensor::Accelerator* cuda = tensor::load_cuda(&problem);
  if (cuda == nullptr) {
    std::fprintf(stderr, "gpu_model_bench: %s\n", problem.c_str());
    return 3;
  }
  const Case& chosen = cases().at(name);
  json result = bench::run_model_bench(chosen.bench, c10::Device(cuda->type, 0));
  const double figure = result.at(chosen.figure);
  result["case"] = name;
  result["device"] = cuda->properties(0).name;
  result["figure"] = chosen.figure;
  if (chosen.goal > 0) {
    result["goal"] = chosen.goal;
    result["met"] = chosen.at_most ? figure <= chosen.goal : figure >= chosen.goal;
  }
  std::printf("%s\n", result.dump().c_str());
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    if (argc == 2 && cases().contains(argv[1])) return run(argv[1]);
    for (const auto& [name, one] : cases()) std::printf("%s\n", name.c_str());
    return argc == 1 ? 0 : 2;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "gpu_model_bench: %s\n", error.what());
    return 1;
  }
}
