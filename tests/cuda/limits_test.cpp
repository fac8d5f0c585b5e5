// Every launch that real models ask for, noted without running, against the limits of each architecture: threads and
// registers of a block, its shared memory, the grid. The shim itself refuses what no architecture allows.
#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <regex>
#include <set>
#include <sstream>
#include <string>

#include "cuda/support.h"
#include "support/cuda_shim/settings.h"

namespace qalora::kernels::cuda {
namespace {

namespace fs = std::filesystem;

// CUDA programming guide, "Technical specifications per compute capability": shared memory a block may ask for.
struct Architecture {
  int number;
  int64_t shared_bytes;
};
constexpr Architecture kArchitectures[] = {{80, 163 * 1024}, {86, 99 * 1024}, {89, 99 * 1024}, {90, 227 * 1024}};

// out_features, in_features of LLaMA 7B, 13B and 70B's layers and heads, stacked ones, and odd ones.
constexpr int64_t kLayers[][2] = {{4096, 4096},   {12288, 4096}, {11008, 4096},  {22016, 4096}, {4096, 11008},
                                  {5120, 13824},  {8192, 8192},  {10240, 8192},  {28672, 8192}, {57344, 8192},
                                  {8192, 28672},  {32000, 4096}, {128256, 8192}, {1, 32},       {17, 96},
                                  {1000, 131072}, {1048576, 64}};
constexpr int64_t kWidths[] = {32, 96, 2048, 4096, 5120, 8192, 11008, 13824, 16384, 28672, 131072};
constexpr int64_t kRows[] = {1, 7, 512, 8192, 1 << 20};

// Nothing is read or written behind it.
template <typename T>
T* somewhere() {
  return reinterpret_cast<T*>(uintptr_t{1} << 40);
}

void expect_ok(Status status, const std::string& what) { EXPECT_EQ(status, Status::kOk) << what; }

void launch_linear(const Api& api, const TiledShape& shape) {
  const std::string what = std::to_string(shape.out_features) + " x " + std::to_string(shape.in_features) +
                           ", group size " + std::to_string(shape.group_size) + ", " + std::to_string(shape.bits) +
                           " bits";
  const TiledView weight{shape, somewhere<uint32_t>(), somewhere<float>(), somewhere<float>()};
  const PackedView packed{somewhere<uint32_t>(), somewhere<float>(), somewhere<float>(), shape.out_features,
                          shape.in_features,     shape.group_size,   shape.bits};
  void* const memory = somewhere<char>();
  expect_ok(api.repack(packed, somewhere<uint32_t>(), somewhere<float>(), somewhere<float>(), nullptr),
            "repack " + what);
  for (const int64_t rank : {1, 64, 256}) {
    float* const floats = somewhere<float>();
    expect_ok(api.fold(shape, floats, floats, floats, rank, 1, floats, nullptr), "fold " + what);
  }
  for (const Panel panel : {Panel::kWhole, Panel::kConcat}) {
    for (const Type type : test::cuda::kAllTypes) {
      const int64_t width = shape.in_features + (panel == Panel::kConcat ? 2 * shape.groups() : 0);
      const int64_t stride = tiles_over(width, 32) * 32;
      expect_ok(api.dequantize(weight, 0, shape.out_features, panel, type, memory, stride, nullptr),
                "dequantize " + what);
    }
  }
  const Type type = Type::kBFloat16;
  for (int64_t rows = 1; rows <= 8; ++rows) {
    expect_ok(api.matvec(weight, memory, shape.in_features, type, somewhere<float>(), rows, memory, shape.out_features,
                         type, nullptr),
              "matvec " + what);
  }
  if (api.matmul == nullptr) return;
  for (const int64_t rows : {9, 16, 33, 64, 128, 256, 300}) {
    for (const int multiprocessors : {46, 84, 108, 132}) {
      expect_ok(api.matmul(weight, memory, shape.in_features, type, somewhere<float>(), rows, memory,
                           shape.out_features, type, memory, multiprocessors, nullptr),
                "matmul " + what);
    }
  }
}

void launch_rows(const Api& api, int64_t rows, int64_t width, Type type) {
  const std::string what = std::to_string(rows) + " x " + std::to_string(width) + " " + test::cuda::name_of(type);
  float* const floats = somewhere<float>();
  void* const memory = floats;
  for (const int64_t group_size : {32, 96, 128, 4096}) {
    for (const bool columns : {false, true}) {
      const PoolOutput pool{floats, group_size, columns};
      const int64_t stride = width + (columns ? 2 * groups_per_row(width, group_size) : 0);
      expect_ok(api.pool(memory, stride, type, rows, width, pool, nullptr), "pool " + what);
      expect_ok(
          api.rms_norm(floats, memory, floats, floats, 1e-5f, rows, width, type, memory, stride, pool, floats, nullptr),
          "rms_norm " + what);
      expect_ok(api.swiglu(memory, memory, type, rows, width, memory, stride, pool, nullptr), "swiglu " + what);
    }
  }
  expect_ok(api.rms_norm_backward(memory, type, floats, floats, floats, floats, rows, width, floats, nullptr),
            "rms_norm_backward " + what);
  expect_ok(api.swiglu_backward(memory, memory, memory, type, rows, width, memory, memory, nullptr),
            "swiglu_backward " + what);
  expect_ok(api.rope(memory, type, floats, floats, rows, width / 32, 128, false, memory, nullptr), "rope " + what);
  const int64_t vocab = width + 1;  // odd
  expect_ok(api.cross_entropy(memory, type, vocab, somewhere<int64_t>(), rows, vocab, true, floats, nullptr),
            "cross_entropy " + what);
}

// A fault, and with it the test's failure, when the architecture has less than a launch asks for.
void launch_all(const Api& api, int64_t shared_bytes, std::vector<cuda_shim::Launch>* launches) {
  cuda_shim::Settings settings = cuda_shim::settings();
  settings.record_only = true;
  settings.max_shared_bytes = shared_bytes;
  settings.launches = launches;
  const cuda_shim::With with(settings);
  for (const auto& layer : kLayers) {
    for (const int bits : {2, 3, 4}) {
      for (const int64_t group_size : {32, 64, 96, 128, 4096})
        launch_linear(api, {layer[0], layer[1], group_size, bits});
    }
  }
  for (const int64_t rows : kRows) {
    for (const int64_t width : kWidths) {
      for (const Type type : test::cuda::kAllTypes) launch_rows(api, rows, width, type);
    }
  }
}

TEST(Limits, SharedMemoryAndGridsOfEveryArchitecture) {
  for (const Architecture& architecture : kArchitectures) {
    std::vector<cuda_shim::Launch> launches;
    EXPECT_NO_THROW(launch_all(api(), architecture.shared_bytes, &launches)) << "sm_" << architecture.number;
    EXPECT_GT(launches.size(), 1000u);
  }
  EXPECT_THROW(launch_all(api(), 64, nullptr), cuda_shim::Fault) << "some kernel needs more than 64 bytes";
}

// ---- Registers
// ------------------------------------------------------------------------------------------------------------------
// ptxas gives a kernel no more registers than a block of __launch_bounds__(threads) can have. So: every kernel says its
// bounds, and is never launched with more threads.

std::string read(const fs::path& path) {
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

// Products of numbers and of names that `text` defines with `constexpr int`; 0 when that is not what it is.
int64_t evaluate(const std::string& expression, const std::string& text, int depth = 0) {
  int64_t product = 1;
  std::stringstream factors(std::regex_replace(expression, std::regex("\\s"), ""));
  for (std::string factor; std::getline(factors, factor, '*');) {
    if (!factor.empty() && std::isdigit(static_cast<unsigned char>(factor[0]))) {
      product *= std::stoll(factor);
      continue;
    }
    std::smatch found;
    const std::regex definition("constexpr int " + factor + " = ([^;]+);");
    if (depth > 4 || !std::regex_search(text, found, definition)) return 0;
    product *= evaluate(found[1], text, depth + 1);
  }
  return product;
}

// Of each kernel in `text`; 0 where there is none or none that can be read.
std::map<std::string, int64_t> launch_bounds(const std::string& text, const std::string& headers) {
  std::map<std::string, int64_t> bounds;
  const std::regex kernel(R"(__global__\s+void\s+(?:__launch_bounds__\(([^,()]*)(?:,[^()]*)?\)\s*)?(\w+)\()");
  for (auto at = std::sregex_iterator(text.begin(), text.end(), kernel); at != std::sregex_iterator(); ++at) {
    const std::string bound = (*at)[1];
    bounds[(*at)[2]] = bound.empty() ? 0 : evaluate(bound, text + headers);
  }
  return bounds;
}

TEST(Limits, NoKernelIsLaunchedWithMoreThreadsThanItsRegistersAreBoundedFor) {
  const fs::path folder = fs::path(QALORA_KERNELS);
  std::string headers;
  for (const auto& entry : fs::directory_iterator(folder)) {
    if (entry.path().extension() == ".h") headers += read(entry.path());
  }
  std::map<std::string, int64_t> bounds;
  size_t kernels = 0;
  for (const auto& entry : fs::directory_iterator(folder)) {
    if (entry.path().extension() != ".cu") continue;
    const std::string text = read(entry.path());
    for (size_t at = 0; (at = text.find("__global__", at)) != std::string::npos; ++at) ++kernels;
    for (const auto& [name, threads] : launch_bounds(text, headers)) {
      EXPECT_GT(threads, 0) << entry.path() << ": " << name << " has no __launch_bounds__ that can be read";
      EXPECT_LE(threads, 1024) << name;
      EXPECT_TRUE(bounds.emplace(name, threads).second) << "two kernels are called " << name;
    }
  }
  EXPECT_EQ(bounds.size(), kernels) << "a kernel's declaration has an unexpected form";

  std::vector<cuda_shim::Launch> launches;
  launch_all(api(), 227 * 1024, &launches);
  std::map<const void*, int64_t> most;
  for (const auto& launch : launches) {
    most[launch.kernel] = std::max(most[launch.kernel], int64_t{launch.block.x} * launch.block.y * launch.block.z);
  }
  std::set<std::string> seen;
  for (const auto& [kernel, threads] : most) {
    const std::string name = cuda_shim::name_of_kernel(kernel);
    const auto known = std::find_if(bounds.begin(), bounds.end(), [&](const auto& bound) {
      return std::regex_search(name, std::regex("\\b" + bound.first + "\\b"));
    });
    ASSERT_NE(known, bounds.end()) << name;
    EXPECT_LE(threads, known->second) << name;
    seen.insert(known->first);
  }
  for (const auto& [name, threads] : bounds) EXPECT_TRUE(seen.contains(name)) << name << " was never launched here";
}

TEST(Limits, BoundsAreReadAndMissedWhenMissing) {
  const std::string text =
      "constexpr int kWarps = 4;\nconstexpr int kThreads = kWarps * 32;\n"
      "__global__ void __launch_bounds__(kThreads, 2)\n    one(int x) {}\n__global__ void __launch_bounds__(kWarps* kMany) two() {}\n"
      "template <int k>\n__global__ void three(int) {}\n";
  EXPECT_EQ(launch_bounds(text, "constexpr int kMany = 256;"),
            (std::map<std::string, int64_t>{{"one", 128}, {"two", 1024}, {"three", 0}}));
}

}  // namespace
}  // namespace qalora::kernels::cuda
