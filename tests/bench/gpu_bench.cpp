// The kernels' speed on the device at hand, each beside its yardstick in the same run.  gpu_bench [--json]
// Work is recorded once and replayed, so that no launch is timed; weights alternate over more memory than the
// second-level cache holds.
#include <ATen/ATen.h>

#include <chrono>
#include <cstdio>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "qalora/core/error.h"
#include "qalora/tensor/accelerator.h"

namespace {

using namespace qalora;
using kernels::cuda::Panel;
using kernels::cuda::TiledShape;
using kernels::cuda::TiledView;
using kernels::cuda::Type;
using nlohmann::json;

constexpr int64_t kSize = 8192, kGroup = 32;
constexpr int kCopies = 8;

struct Bench {
  const tensor::Accelerator* cuda = nullptr;
  const kernels::cuda::Api* api = nullptr;
  c10::Device device{c10::DeviceType::CUDA, 0};
  int multiprocessors = 0;
  json results = json::array();

  at::TensorOptions options(at::ScalarType dtype) const { return at::TensorOptions().dtype(dtype).device(device); }
  at::Tensor normal(at::IntArrayRef shape) const { return at::randn(shape, options(at::kBFloat16)); }
  kernels::cuda::Stream stream() const { return tensor::current_stream(device); }

  // Seconds of one call of `work(i)`, where i counts the copies of the data round.
  double seconds(const std::function<void(int)>& work) const {
    const auto round = [&] {
      for (int i = 0; i < kCopies; ++i) work(i);
    };
    round(), round();
    const auto graph = cuda->record(0, round);
    graph->replay();
    cuda->synchronize(0);
    for (int replays = 4;; replays *= 4) {
      const auto start = std::chrono::steady_clock::now();
      for (int i = 0; i < replays; ++i) graph->replay();
      cuda->synchronize(0);
      const double taken = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
      if (taken > 0.1) return taken / replays / kCopies;
    }
  }

  // figure against goal, in the same unit; `better` is more.
  void add(const std::string& name, double microseconds, double figure, const char* unit, double goal) {
    results.push_back({{"name", name},
                       {"microseconds", microseconds},
                       {"figure", figure},
                       {"unit", unit},
                       {"goal", goal},
                       {"met", figure >= goal}});
  }
  void leave_out(const std::string& name, const std::string& reason) {
    results.push_back({{"name", name}, {"not_run", reason}});
  }
  // A kernel that is missing or refuses is named; the others go on.
  void measure(const std::string& name, const std::function<void()>& run) {
    try {
      run();
    } catch (const std::exception& error) {
      leave_out(name, std::string(error.what()).substr(0, 300));
    }
  }
};

struct Weights {
  TiledShape shape;
  std::vector<at::Tensor> codes, scales, offsets;

  Weights(const Bench& bench, int bits) : shape{kSize, kSize, kGroup, bits} {
    for (int i = 0; i < kCopies; ++i) {
      codes.push_back(at::randint(-2147483648LL, 2147483647LL, {shape.code_words()}, bench.options(at::kInt)));
      scales.push_back(at::randn({shape.group_floats()}, bench.options(at::kFloat)) * 0.01);
      offsets.push_back(at::randn({shape.group_floats()}, bench.options(at::kFloat)) * 0.01);
    }
  }
  TiledView view(int i) const {
    return {shape, static_cast<const uint32_t*>(codes[i].data_ptr()), scales[i].data_ptr<float>(),
            offsets[i].data_ptr<float>()};
  }
  double bytes() const { return static_cast<double>(codes[0].nbytes() + scales[0].nbytes() + offsets[0].nbytes()); }
};

double copy_bandwidth(Bench& bench) {
  const at::Tensor from = at::zeros({int64_t{1} << 30}, bench.options(at::kByte)), to = at::empty_like(from);
  const double taken = bench.seconds([&](int) { to.copy_(from); }),
               bandwidth = 2.0 * static_cast<double>(from.nbytes()) / taken;
  bench.add("copy, device to device", taken * 1e6, bandwidth / 1e12, "TB/s", 0);
  return bandwidth;
}

void dequantize(Bench& bench, const Weights& weights, double bandwidth) {
  QALORA_REQUIRE(bench.api->dequantize != nullptr, InternalError, "no such kernel");
  const at::Tensor out = at::empty({kSize, kSize}, bench.options(at::kBFloat16));
  const double taken = bench.seconds([&](int i) {
    tensor::check_status(bench.api->dequantize(weights.view(i), 0, kSize, Panel::kWhole, Type::kBFloat16,
                                               out.data_ptr(), kSize, bench.stream()),
                         "dequantize");
  });
  bench.add("dequantise, int" + std::to_string(weights.shape.bits) + " g32, 8192 x 8192", taken * 1e6,
            (weights.bytes() + static_cast<double>(out.nbytes())) / taken / bandwidth, "of copy bandwidth", 0.85);
}

// Dense bf16, the same product, by the library.
double dense_seconds(const Bench& bench, const std::vector<at::Tensor>& dense, const at::Tensor& x) {
  at::Tensor y = at::empty({x.size(0), kSize}, x.options());
  return bench.seconds([&](int i) { at::matmul_out(y, x, dense[static_cast<size_t>(i)].t()); });
}

// x: [rows, kSize] bf16 with its group sums
double fused_seconds(const Bench& bench, const Weights& weights, const at::Tensor& x) {
  const int64_t rows = x.size(0);
  const at::Tensor sums = x.to(at::kFloat).reshape({rows, kSize / kGroup, kGroup}).sum(-1);
  const at::Tensor y = at::empty({rows, kSize}, x.options());
  const int64_t bytes = rows > 8 ? bench.api->matmul_workspace_bytes(weights.shape, rows, bench.multiprocessors) : 0;
  const at::Tensor workspace = at::empty({std::max<int64_t>(bytes, 1)}, bench.options(at::kByte));
  return bench.seconds([&](int i) {
    const auto status =
        rows <= 8 ? bench.api->matvec(weights.view(i), x.data_ptr(), kSize, Type::kBFloat16, sums.data_ptr<float>(),
                                      rows, y.data_ptr(), kSize, Type::kBFloat16, bench.stream())
                  : bench.api->matmul(weights.view(i), x.data_ptr(), kSize, Type::kBFloat16, sums.data_ptr<float>(),
                                      rows, y.data_ptr(), kSize, Type::kBFloat16, workspace.data_ptr(),
                                      bench.multiprocessors, bench.stream());
    tensor::check_status(status, "product");
  });
}

void products(Bench& bench, const Weights& weights, const std::vector<at::Tensor>& dense, double bandwidth) {
  const std::string name = "int" + std::to_string(weights.shape.bits) + " g32";
  const auto beside = [&](int64_t rows) { return dense_seconds(bench, dense, bench.normal({rows, kSize})); };
  for (const int64_t rows : {1, 4, 8}) {
    bench.measure("matvec " + name + ", M=" + std::to_string(rows), [&] {
      QALORA_REQUIRE(bench.api->matvec != nullptr, InternalError, "no such kernel");
      const double taken = fused_seconds(bench, weights, bench.normal({rows, kSize}));
      const std::string label = "matvec " + name + ", M=" + std::to_string(rows);
      bench.add(label, taken * 1e6, weights.bytes() / taken / bandwidth, "of copy bandwidth", rows == 1 ? 0.70 : 0);
      bench.add(label + " beside dense bf16", taken * 1e6, beside(rows) / taken, "times as fast", 0);
    });
  }
  for (const auto& [rows, goal] : {std::pair<int64_t, double>{16, 2.1}, {64, 1.7}, {128, 1.4}, {256, 0}}) {
    bench.measure("matmul " + name + ", M=" + std::to_string(rows), [&, rows = rows, goal = goal] {
      QALORA_REQUIRE(bench.api->matmul != nullptr, InternalError, "no such kernel");
      const double taken = fused_seconds(bench, weights, bench.normal({rows, kSize}));
      bench.add("matmul " + name + ", M=" + std::to_string(rows) + " beside dense bf16", taken * 1e6,
                beside(rows) / taken, "times as fast", goal);
    });
  }
}

// A frozen layer as training runs it: forward with the panel that keeps the offsets' precision (two columns a group
// more), then the gradient of its input with the whole weight; each dequantised for its product.
void forward_backward(Bench& bench, const Weights& weights, const std::vector<at::Tensor>& dense) {
  constexpr int64_t kTokens = 8192;
  constexpr int64_t kPanel = kSize + 2 * (kSize / kGroup);
  const at::Tensor x = bench.normal({kTokens, kSize}), input = bench.normal({kTokens, kPanel}),
                   scratch = at::empty({kSize, kSize}, x.options());
  const at::Tensor panel = at::empty({kSize, kPanel}, x.options());
  at::Tensor y = at::empty_like(x), dx = at::empty_like(x);
  const auto dequantize_to = [&](int i, Panel kind, const at::Tensor& out) {
    tensor::check_status(bench.api->dequantize(weights.view(i), 0, kSize, kind, Type::kBFloat16, out.data_ptr(),
                                               out.size(1), bench.stream()),
                         "dequantize");
  };
  const auto both = [&](const at::Tensor& weight) {
    at::matmul_out(y, x, weight.t());
    at::matmul_out(dx, y, weight);
  };
  const double library = bench.seconds([&](int i) { both(dense[static_cast<size_t>(i)]); });
  const double ours = bench.seconds([&](int i) {
    dequantize_to(i, Panel::kConcat, panel);
    at::matmul_out(y, input, panel.t());
    dequantize_to(i, Panel::kWhole, scratch);
    at::matmul_out(dx, y, scratch);
  });
  bench.add("dense bf16 forward and backward, M=8192", library * 1e6, 4.0 * kTokens * kSize * kSize / library / 1e12,
            "TFLOP/s", 0);
  bench.add("linear forward and backward, M=8192", ours * 1e6, library / ours, "of dense bf16", 0.94);
}

void rows(Bench& bench, double bandwidth) {
  constexpr int64_t kTokens = 8192, kWidth = 4096, kVocabulary = 32000;
  const at::Tensor h = at::randn({kTokens, kWidth}, bench.options(at::kFloat)),
                   weight = at::ones({kWidth}, bench.options(at::kFloat));
  const at::Tensor residual = bench.normal({kTokens, kWidth}), out = at::empty_like(residual),
                   inverse = at::empty({kTokens}, h.options());
  const at::Tensor to = at::empty_like(h), sums = at::empty({kTokens, kWidth / kGroup}, h.options());
  const auto share = [&](const char* name, double bytes, const std::function<kernels::Status()>& work) {
    bench.measure(name, [&] {
      const double taken = bench.seconds([&](int) { tensor::check_status(work(), name); });
      bench.add(name, taken * 1e6, bytes / taken / bandwidth, "of copy bandwidth", 0.85);
    });
  };
  const kernels::cuda::PoolOutput pool = {.sums = sums.data_ptr<float>(), .group_size = kGroup};
  const auto elements = static_cast<double>(kTokens * kWidth);
  share("RMSNorm with residual and pool, 8192 x 4096", elements * (4 + 2 + 4 + 2 + 4.0 / kGroup), [&] {
    return bench.api->rms_norm(h.data_ptr<float>(), residual.data_ptr(), to.data_ptr<float>(), weight.data_ptr<float>(),
                               1e-5f, kTokens, kWidth, Type::kBFloat16, out.data_ptr(), kWidth, pool,
                               inverse.data_ptr<float>(), bench.stream());
  });
  share("SwiGLU with pool, 8192 x 4096", elements * (2 + 2 + 2 + 4.0 / kGroup), [&] {
    return bench.api->swiglu(residual.data_ptr(), residual.data_ptr(), Type::kBFloat16, kTokens, kWidth, out.data_ptr(),
                             kWidth, pool, bench.stream());
  });
  const at::Tensor logits = bench.normal({2048, kVocabulary}), losses = at::empty({2048}, h.options());
  const at::Tensor targets = at::randint(kVocabulary, {2048}, bench.options(at::kLong));
  share("cross-entropy with gradient, 2048 x 32000", 2 * static_cast<double>(logits.nbytes()), [&] {
    return bench.api->cross_entropy(logits.data_ptr(), Type::kBFloat16, kVocabulary, targets.data_ptr<int64_t>(), 2048,
                                    kVocabulary, true, losses.data_ptr<float>(), bench.stream());
  });
}

void print_table(const json& results) {
  std::printf("| what | time, us | figure | goal |\n|---|---|---|---|\n");
  for (const json& row : results) {
    const std::string name = row.at("name");
    if (row.contains("not_run")) {
      std::printf("| %s | | not run: %s | |\n", name.c_str(), row.at("not_run").get<std::string>().c_str());
      continue;
    }
    const double goal = row.at("goal");
    std::printf("| %s | %.1f | %.3g %s | %s |\n", name.c_str(), row.at("microseconds").get<double>(),
                row.at("figure").get<double>(), row.at("unit").get<std::string>().c_str(),
                goal == 0 ? "" : message(goal, row.at("met").get<bool>() ? ", met" : ", missed").c_str());
  }
}

int run(bool as_json) {
  Bench bench;
  std::string problem;
  bench.cuda = tensor::load_cuda(&problem);
  if (bench.cuda == nullptr) {
    std::fprintf(stderr, "gpu_bench: %s\n", problem.c_str());
    return 3;
  }
  bench.api = bench.cuda->kernels;
  const tensor::AcceleratorProperties properties = bench.cuda->properties(0);
  bench.multiprocessors = properties.multiprocessors;
  const double bandwidth = copy_bandwidth(bench);
  const Weights four(bench, 4);
  std::vector<at::Tensor> dense;
  for (int i = 0; i < kCopies; ++i) dense.push_back(bench.normal({kSize, kSize}));
  bench.measure("dequantise", [&] { dequantize(bench, four, bandwidth); });
  products(bench, four, dense, bandwidth);
  bench.measure("int2", [&] {
    const Weights two(bench, 2);
    dequantize(bench, two, bandwidth);
    products(bench, two, dense, bandwidth);
  });
  bench.measure("linear forward and backward, M=8192", [&] { forward_backward(bench, four, dense); });
  bench.measure("rows", [&] { rows(bench, bandwidth); });
  const json document = {{"device", properties.name},
                         {"architecture", properties.architecture},
                         {"version", bench.cuda->version},
                         {"results", bench.results}};
  if (as_json) {
    std::printf("%s\n", document.dump().c_str());
  } else {
    std::printf("%s, CUDA %s\n\n", properties.name.c_str(), bench.cuda->version.c_str());
    print_table(bench.results);
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc > 1 && std::string(argv[1]) == "--json");
  } catch (const std::exception& error) {
    std::fprintf(stderr, "gpu_bench: %s\n", error.what());
    return 1;
  }
}
