// What happens when there is not enough memory, and how much is needed.
#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>

#include "qalora/model/load.h"
#include "qalora/tensor/random.h"
#include "support/support.h"

namespace qalora {
namespace {

using namespace test;

// The program under a limit of its address space, which it inherits from this process.
Outcome run_limited(rlim_t bytes, const std::vector<std::string>& arguments) {
  rlimit before{};
  getrlimit(RLIMIT_AS, &before);
  const rlimit limited{bytes, before.rlim_max};
  setrlimit(RLIMIT_AS, &limited);
  const Outcome run = run_qalora(arguments);
  setrlimit(RLIMIT_AS, &before);
  return run;
}

// A failed allocation inside LibTorch must come back as an error: another library's variable of the same name once made
// it abort.
TEST(Memory, RunningOutOfItIsASentenceAndExitCode4) {
#ifdef __SANITIZE_ADDRESS__
  GTEST_SKIP() << "AddressSanitizer needs terabytes of address space";
#endif
  TempDir dir;
  const fs::path model = source_dir() / "models/miniature", data = source_dir() / "tests/data/miniature/tune.json";
  const Outcome run = run_limited(rlim_t{1600} << 20, {"finetune",  "--model",
                                                       model,       "--method",
                                                       "full",      "--data",
                                                       data,        "--out",
                                                       dir / "run", "--steps",
                                                       "1",         "--batch-size",
                                                       "2400",      "--micro-batch-size",
                                                       "2400",      "--sequence-length",
                                                       "256",       "--threads",
                                                       "1",         "-q"});
  EXPECT_EQ(run.exit_code, 4) << run.err;
  EXPECT_NE(run.err.find("out of memory"), std::string::npos) << run.err;
  EXPECT_NE(run.err.find("micro_batch_size"), std::string::npos) << run.err;
  EXPECT_FALSE(fs::exists(dir / "run" / "model"));
}

// A checkpoint of one layer whose weights are all zero, which takes no room on the disk: only its header is written.
void write_sparse_checkpoint(const fs::path& folder) {
  constexpr int64_t kHidden = 4096, kIntermediate = 16384, kVocab = 16384;
  const nlohmann::json config = {{"architectures", {"LlamaForCausalLM"}},
                                 {"model_type", "llama"},
                                 {"vocab_size", kVocab},
                                 {"hidden_size", kHidden},
                                 {"intermediate_size", kIntermediate},
                                 {"num_hidden_layers", 1},
                                 {"num_attention_heads", 32},
                                 {"max_position_embeddings", 128},
                                 {"rms_norm_eps", 1e-5},
                                 {"tie_word_embeddings", false}};
  write_file(folder / "config.json", config.dump());
  nlohmann::json header;
  uint64_t end = 0;
  for (const auto& tensor : model::expected_tensors(model::parse_config(config, "test"))) {
    uint64_t bytes = 2;
    for (const int64_t dimension : tensor.shape) bytes *= static_cast<uint64_t>(dimension);
    header[tensor.name] = {{"dtype", "F16"}, {"shape", tensor.shape}, {"data_offsets", {end, end + bytes}}};
    end += bytes;
  }
  const std::string text = header.dump();
  const uint64_t length = text.size();
  write_file(folder / "model.safetensors", std::string(reinterpret_cast<const char*>(&length), sizeof length) + text);
  fs::resize_file(folder / "model.safetensors", sizeof length + length + end);
}

// The promise of `quantize`: memory follows the largest tensor, not the model, and is known before.
TEST(Memory, QuantisingNeedsWhatItSays) {
#ifdef __SANITIZE_ADDRESS__
  GTEST_SKIP() << "AddressSanitizer keeps memory that was freed";
#endif
  TempDir dir;
  write_sparse_checkpoint(dir / "dense");
  constexpr uint64_t kLargest = uint64_t{4096} * 16384 * 2;  // the embedding, and each matrix of the MLP
  const uint64_t total = fs::file_size(dir / "dense/model.safetensors");
  ASSERT_GT(total, 5 * kLargest);
  const std::vector<std::string> words = {"quantize",  "--model", dir / "dense", "--out",
                                          dir / "out", "--force", "-q",          "--json"};
  std::vector<std::string> dry = words;
  dry.push_back("--dry-run");
  const uint64_t estimate = nlohmann::json::parse(run_qalora(dry).out).at("estimated_peak_memory_bytes");
  const Outcome run = run_qalora(words);
  ASSERT_EQ(run.exit_code, 0) << run.err;
  const uint64_t peak = nlohmann::json::parse(run.out).at("peak_memory_bytes");
  RecordProperty("peak_megabytes", std::to_string(peak / 1000000));
  RecordProperty("estimate_megabytes", std::to_string(estimate / 1000000));
  EXPECT_LE(peak, 3 * kLargest + 1'000'000'000);
  EXPECT_LE(peak, estimate);
  EXPECT_LE(estimate, peak + peak / 2) << "so that the estimate says something";
}

// A dense checkpoint whose blocks all have the same random weights.
void write_deep_checkpoint(const fs::path& folder, int64_t layers) {
  const nlohmann::json json = {{"architectures", {"LlamaForCausalLM"}},
                               {"model_type", "llama"},
                               {"vocab_size", 256},
                               {"hidden_size", 512},
                               {"intermediate_size", 1536},
                               {"num_hidden_layers", layers},
                               {"num_attention_heads", 8},
                               {"max_position_embeddings", 128},
                               {"rms_norm_eps", 1e-5},
                               {"tie_word_embeddings", false},
                               {"torch_dtype", "float16"}};
  fs::create_directories(folder);
  write_file(folder / "config.json", json.dump());
  const std::vector<model::ExpectedTensor> tensors = model::expected_tensors(model::parse_config(json, "test"));
  std::vector<io::PlannedTensor> plan;
  std::map<std::vector<int64_t>, at::Tensor> values;
  for (const auto& tensor : tensors) {
    plan.push_back({tensor.name, io::Dtype::kF16, tensor.shape});
    if (values.contains(tensor.shape)) continue;
    const bool norm = tensor.shape.size() == 1;
    values[tensor.shape] = norm ? at::ones(tensor.shape, at::kHalf)
                                : tensor::RandomStream(1, "deep").normal_tensor(tensor.shape, 0.03).to(at::kHalf);
  }
  io::CheckpointWriter writer(folder, plan, {});
  for (const auto& tensor : tensors) writer.write(tensor.name, values.at(tensor.shape));
  writer.finish();
}

// GPTQ holds a block at a time: five times the blocks take no more memory, and it says before how much.
TEST(Memory, GptqNeedsWhatItSaysHoweverDeepTheModel) {
#ifdef __SANITIZE_ADDRESS__
  GTEST_SKIP() << "AddressSanitizer keeps memory that was freed";
#endif
  TempDir dir;
  std::string lines;
  for (int row = 0; row < 16; ++row) {
    nlohmann::json ids = nlohmann::json::array();
    for (int i = 0; i < 128; ++i) ids.push_back((row * 37 + i * (row + 3)) % 256);
    lines += nlohmann::json({{"input_ids", ids}}).dump() + "\n";
  }
  write_file(dir / "ids.jsonl", lines);
  constexpr uint64_t kBlock = uint64_t{4} * (4 * 512 * 512 + 3 * 512 * 1536);  // in fp32
  const auto measure = [&](int64_t layers) {
    const fs::path model = dir / ("dense" + std::to_string(layers));
    write_deep_checkpoint(model, layers);
    const Outcome run =
        run_qalora({"quantize", "--model", model, "--out", dir / ("out" + std::to_string(layers)), "--calibration",
                    dir / "ids.jsonl", "--samples", "16", "--dtype", "float32", "--device", "cpu", "-q", "--json"});
    EXPECT_EQ(run.exit_code, 0) << run.err;
    return nlohmann::json::parse(run.out);
  };
  const nlohmann::json shallow = measure(4), deep = measure(12);
  const auto peak = [](const nlohmann::json& answer) { return answer.at("peak_memory_bytes").get<uint64_t>(); };
  RecordProperty("peak_megabytes", std::to_string(peak(deep) / 1000000));
  EXPECT_LE(peak(deep), peak(shallow) + 2 * kBlock) << "8 blocks more are " << 8 * kBlock / 2 << " bytes in the file";
  for (const nlohmann::json& answer : {shallow, deep}) {
    EXPECT_LE(peak(answer), answer.at("estimated_peak_memory_bytes").get<uint64_t>());
    EXPECT_LE(answer.at("estimated_peak_memory_bytes").get<uint64_t>(), peak(answer) + peak(answer) / 2);
  }
}

}  // namespace
}  // namespace qalora
