#include <nlohmann/json.hpp>

#include "gguf.h"
#include "qalora/core/error.h"
#include "qalora/io/gguf_config.h"
#include "qalora/io/gguf_names.h"
#include "qalora/text/gguf_vocabulary.h"
#include "qalora/text/tokenizer.h"

namespace qalora::exporting {
namespace {

constexpr int64_t kQuantizationVersion = 2;  // of ggml's blocks

std::string model_name(const Source& source) {
  const fs::path place = source.checkpoint.folder();
  const std::string name = fs::absolute(place).lexically_normal().filename().string();
  return name.empty() ? "model" : name;
}

void add_rope(const model::LlamaConfig& config, const std::string& prefix, io::GgufMetadata& metadata) {
  metadata.u32(prefix + "rope.dimension_count", config.head_dim);
  metadata.f32(prefix + "rope.freq_base", config.rope.theta);
  const bool linear = config.rope.kind == model::RopeKind::kLinear, yarn = config.rope.kind == model::RopeKind::kYarn;
  if (!linear && !yarn) return;
  metadata.text(prefix + "rope.scaling.type", linear ? "linear" : "yarn");
  metadata.f32(prefix + "rope.scaling.factor", config.rope.factor);
  if (yarn) metadata.u32(prefix + "rope.scaling.original_context_length", config.rope.original_context);
}

void add_sizes(const model::LlamaConfig& config, const std::string& prefix, io::GgufMetadata& metadata) {
  metadata.u32(prefix + "context_length", config.context_length);
  metadata.u32(prefix + "embedding_length", config.hidden_size);
  metadata.u32(prefix + "block_count", config.layers);
  metadata.u32(prefix + "feed_forward_length", config.intermediate_size);
  metadata.u32(prefix + "attention.head_count", config.heads);
  metadata.u32(prefix + "attention.head_count_kv", config.kv_heads);
  metadata.u32(prefix + "attention.key_length", config.head_dim);
  metadata.u32(prefix + "attention.value_length", config.head_dim);
  metadata.f32(prefix + "attention.layer_norm_rms_epsilon", config.norm_eps);
  metadata.u32(prefix + "vocab_size", config.vocab_size);
}

text::Vocabulary vocabulary_of(const Source& source, std::vector<std::string>& notes) {
  const fs::path& place = source.checkpoint.folder();
  if (text::Tokenizer::exists(place)) {
    text::Vocabulary vocabulary = text::Tokenizer(place).vocabulary();
    if (vocabulary.kind == text::TokenizerKind::kSentencePiece && vocabulary.add_space_prefix) {
      if (!vocabulary.legacy) {
        notes.emplace_back(
            "llama.cpp puts a blank in front of text behind a special token as well, this tokenizer only at the very front: there "
            "the ids differ");
      }
      if (vocabulary.prefix_only_without) {
        notes.emplace_back(
            "llama.cpp puts a blank in front of a text that begins with one as well, this tokenizer does not: there the ids differ");
      }
    }
    return vocabulary;
  }
  notes.emplace_back(
      "the model has no tokenizer beside it: the file's tokens are placeholders, so that the engine takes and gives ids, not text");
  return text::placeholder_vocabulary(source.config.vocab_size);
}

}  // namespace

std::string gguf_architecture(const model::LlamaConfig& config) {
  return config.model_type == "qwen2" || config.model_type == "qwen3" ? config.model_type : "llama";
}

int64_t row_from_gguf(int64_t row, int64_t head_dim) {
  const int64_t head = row / head_dim, within = row % head_dim;
  return head * head_dim + within % 2 * (head_dim / 2) + within / 2;
}

bool is_permuted(const model::LlamaConfig& config, const std::string& name) {
  return io::gguf_permuted_heads(gguf_architecture(config), name, config.heads, config.kv_heads) > 0;
}

void check_gguf_rope(const Source& source) {
  const model::RopeConfig& rope = source.config.rope;
  const std::string where = source.checkpoint.config_name();
  const char* way = "; export it with --to safetensors";
  QALORA_REQUIRE(rope.kind != model::RopeKind::kDynamic, UserError, where,
                 ": a dynamic rotary scaling, which llama.cpp does not compute", way);
  QALORA_REQUIRE(rope.kind != model::RopeKind::kLlama3 || gguf_architecture(source.config) == "llama", UserError, where,
                 ": LLaMA 3's rotary scaling, which llama.cpp computes for LLaMA only, not for ",
                 source.config.model_type, way);
  if (rope.kind != model::RopeKind::kYarn) return;
  const bool usual = rope.beta_fast == 32 && rope.beta_slow == 1 && !rope.attention_factor && !rope.mscale &&
                     !rope.mscale_all_dim && rope.truncate;
  QALORA_REQUIRE(usual, UserError, where, ": YaRN with other settings than its factor, which GGUF does not carry", way);
}

std::vector<float> gguf_rope_divisors(const model::LlamaConfig& config) {
  if (config.rope.kind != model::RopeKind::kLlama3) return {};
  const model::RopeConfig& rope = config.rope;
  const std::vector<double> divisors = io::llama3_divisors({.factor = rope.factor,
                                                            .low_freq_factor = rope.low_freq_factor,
                                                            .high_freq_factor = rope.high_freq_factor,
                                                            .original_context = rope.original_context},
                                                           rope.theta, config.head_dim);
  return {divisors.begin(), divisors.end()};
}

io::GgufMetadata gguf_metadata(const Source& source, int64_t file_type, bool quantised,
                               std::vector<std::string>& notes) {
  const model::LlamaConfig& config = source.config;
  const std::string architecture = gguf_architecture(config), prefix = architecture + ".";
  io::GgufMetadata metadata;
  metadata.text("general.architecture", architecture);
  metadata.text("general.type", "model");
  metadata.text("general.name", model_name(source));
  metadata.u32("general.file_type", file_type);
  if (quantised) metadata.u32("general.quantization_version", kQuantizationVersion);
  add_sizes(config, prefix, metadata);
  add_rope(config, prefix, metadata);
  text::add_gguf_vocabulary(vocabulary_of(source, notes), config.vocab_size, source.checkpoint.folder().string(),
                            metadata);
  return metadata;
}

}  // namespace qalora::exporting
