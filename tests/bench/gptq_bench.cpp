// GPTQ of single matrices of a 1.1B model's shapes: seconds of each part, and how busy the processors were.
//   gptq_bench [--json] [--bits N] [--group-size N] [--shape IN OUT]
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <sys/resource.h>

#include <chrono>
#include <cstdio>
#include <cstring>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "qalora/quant/gptq.h"
#include "qalora/tensor/device.h"

namespace {

using namespace qalora;

double wall() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// Seconds that all threads together have computed.
double processor() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + 1e-6 * static_cast<double>(time.tv_usec);
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

// Inputs with a falling spectrum, as activations have: [tokens, in_features] f32
at::Tensor inputs_of(int64_t tokens, int64_t in_features) {
  constexpr int64_t kFactors = 64;
  const at::Tensor common = at::randn({kFactors, in_features}) / at::arange(1, kFactors + 1, at::kFloat).unsqueeze(1);
  return at::randn({tokens, kFactors}).mm(common) +
         at::randn({tokens, in_features}) * at::rand({in_features}).mul_(0.5).add_(0.1);
}

struct Options {
  bool json = false;
  int bits = 4;
  int64_t group_size = 32, in_features = 0, out_features = 0;
};

Options parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const auto next = [&] { return std::stoll(i + 1 < argc ? argv[++i] : ""); };
    if (std::strcmp(argv[i], "--json") == 0) options.json = true;
    else if (std::strcmp(argv[i], "--bits") == 0) options.bits = static_cast<int>(next());
    else if (std::strcmp(argv[i], "--group-size") == 0) options.group_size = next();
    else if (std::strcmp(argv[i], "--shape") == 0) options.in_features = next(), options.out_features = next();
    else throw std::invalid_argument(std::string("unknown argument ") + argv[i]);
  }
  return options;
}

nlohmann::json measure(int64_t in_features, int64_t out_features, const Options& options) {
  constexpr int64_t kTokens = 2048, kBatch = 512;
  const at::Tensor inputs = inputs_of(kTokens, in_features), weight = at::randn({out_features, in_features}) * 0.02;
  const double start = wall();
  quant::Hessian hessian(in_features, at::kCPU);
  for (int64_t first = 0; first < kTokens; first += kBatch) hessian.add(inputs.narrow(0, first, kBatch));
  const at::Tensor matrix = hessian.matrix();
  const double gathered = wall();
  quant::Hessian sixteen(in_features, at::kCPU);
  const at::Tensor narrow = inputs.to(at::kBFloat16);
  const double begin = wall();
  for (int64_t first = 0; first < kTokens; first += kBatch) sixteen.add(narrow.narrow(0, first, kBatch));
  const double sixteen_seconds = wall() - begin, ready = wall(), busy = processor();
  quant::GptqOptions how;
  how.bits = options.bits, how.group_size = options.group_size;
  const quant::GptqResult result = quant::gptq("bench", weight, matrix, how);
  const double taken = wall() - ready;
  return {{"in_features", in_features},
          {"out_features", out_features},
          {"bits", options.bits},
          {"group_size", options.group_size},
          {"hessian_seconds_per_1024_tokens", (gathered - start) / kTokens * 1024},
          {"hessian_bf16_seconds_per_1024_tokens", sixteen_seconds / kTokens * 1024},
          {"factor_seconds", result.factor_seconds},
          {"solve_seconds", result.solve_seconds},
          {"refit_seconds", result.refit_seconds},
          {"seconds", taken},
          {"threads_busy", (processor() - busy) / taken},
          {"threads", at::get_num_threads()},
          {"loss", result.loss},
          {"loss_before_refit", result.loss_before_refit},
          {"loss_round_to_nearest", result.loss_round_to_nearest}};
}

}  // namespace

int main(int argc, char** argv) try {
  const Options options = parse(argc, argv);
  std::vector<std::pair<int64_t, int64_t>> shapes = {{2048, 2048}, {2048, 5632}, {5632, 2048}};
  if (options.in_features > 0) shapes = {{options.in_features, options.out_features}};
  nlohmann::json all = nlohmann::json::array();
  for (const auto& [in_features, out_features] : shapes) {
    const nlohmann::json line = measure(in_features, out_features, options);
    all.push_back(line);
    if (options.json) continue;
    const auto value = [&](const char* key) { return line[key].get<double>(); };
    std::printf(
        "in %5ld out %5ld: H %.2f s per 1024 tokens (bf16 %.2f), factor %.2f, columns %.2f, refit %.2f, all %.2f s; "
        "%.2f of %.0f threads busy; loss %.4g, before the refit %.4g, round to nearest %.4g\n",
        in_features, out_features, value("hessian_seconds_per_1024_tokens"),
        value("hessian_bf16_seconds_per_1024_tokens"), value("factor_seconds"), value("solve_seconds"),
        value("refit_seconds"), value("seconds"), value("threads_busy"), value("threads"), value("loss"),
        value("loss_before_refit"), value("loss_round_to_nearest"));
    std::fflush(stdout);
  }
  if (options.json) std::printf("%s\n", all.dump(2).c_str());
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "gptq_bench: %s\n", error.what());
  return 1;
}
