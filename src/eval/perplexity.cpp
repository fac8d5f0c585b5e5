#include "qalora/eval/perplexity.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <nlohmann/json.hpp>

#include "qalora/core/checked.h"
#include "qalora/core/error.h"
#include "qalora/core/format.h"
#include "qalora/core/signals.h"
#include "qalora/eval/json_lines.h"
#include "qalora/eval/scorer.h"
#include "qalora/io/checkpoint.h"
#include "qalora/io/safetensors.h"
#include "qalora/tensor/device.h"

namespace qalora::eval {
namespace {

constexpr int64_t kDefaultBlockTokens = 2048;

bool enough(const TokenBlocks& out, int64_t limit) {
  return limit > 0 && static_cast<int64_t>(out.blocks.size()) >= limit;
}

void add_document(TokenBlocks& out, const text::Tokenizer& tokenizer, std::string_view text, int64_t limit) {
  throw_if_stopped();
  const std::vector<int64_t> ids = tokenizer.encode(text, {.add_bos = tokenizer.adds_bos()});
  ++out.documents;
  for (size_t begin = 0; begin < ids.size() && !enough(out, limit); begin += static_cast<size_t>(out.block_tokens)) {
    const size_t end = std::min(ids.size(), begin + static_cast<size_t>(out.block_tokens));
    if (end - begin < 2) {
      ++out.dropped_tokens;
      break;
    }
    out.blocks.emplace_back(ids.begin() + static_cast<int64_t>(begin), ids.begin() + static_cast<int64_t>(end));
    if (end - begin < static_cast<size_t>(out.block_tokens)) ++out.partial_blocks;
  }
}

std::vector<int64_t> parse_ids(const nlohmann::json& list, const fs::path& path, size_t row,
                               const model::LlamaConfig& config) {
  QALORA_REQUIRE(list.is_array(), DataError, path.string(),
                 ": expected one list of token ids or a list of such lists; row ", row, " is ", list.type_name());
  QALORA_REQUIRE(list.size() >= 2, DataError, path.string(), ": row ", row, " has ", list.size(),
                 " tokens; two are needed to predict one");
  QALORA_REQUIRE(static_cast<int64_t>(list.size()) <= config.context_length, DataError, path.string(), ": row ", row,
                 " has ", list.size(), " tokens; the model's context is ", config.context_length);
  std::vector<int64_t> ids;
  for (size_t i = 0; i < list.size(); ++i) {
    const auto& id = list[i];
    QALORA_REQUIRE(id.is_number_integer() && id >= 0 && id < config.vocab_size, DataError, path.string(), ": row ", row,
                   ", position ", i, ": expected a token id from 0 to ", config.vocab_size - 1, ", got ", id.dump());
    ids.push_back(id.get<int64_t>());
  }
  return ids;
}

// How many bytes the logits of all rows take, checked against what memory and disk can hold.
void check_room(const TokenBlocks& rows, int64_t vocab_size, const fs::path& path) {
  const int64_t shape[] = {static_cast<int64_t>(rows.blocks.size()), rows.block_tokens, vocab_size,
                           int64_t{sizeof(float)}};
  const auto bytes = checked_elements(shape);
  const uint64_t memory = tensor::available_memory_bytes();
  QALORA_REQUIRE(bytes && static_cast<uint64_t>(*bytes) <= memory / 2, MemoryError, "--save-logits ", path.string(),
                 ": ", rows.blocks.size(), " rows of ", rows.block_tokens, " positions and ", vocab_size,
                 " logits need ", bytes ? format_bytes(static_cast<uint64_t>(*bytes)) : "too many bytes",
                 " of memory; half of what is free is ", format_bytes(memory / 2), "; give fewer ids");
  std::error_code failed;
  const auto space = fs::space(fs::absolute(path).parent_path(), failed);
  QALORA_REQUIRE(!failed, IoError, path.string(), ": ", failed.message());
  QALORA_REQUIRE(static_cast<uint64_t>(*bytes) < space.available, IoError, path.string(), ": needs ",
                 format_bytes(static_cast<uint64_t>(*bytes)), ", the disk has ", format_bytes(space.available));
}

}  // namespace

int64_t block_length(int64_t asked, const model::LlamaConfig& config) {
  if (asked == 0) return std::min(kDefaultBlockTokens, config.context_length);
  QALORA_REQUIRE(asked >= 2, UserError, "--context-length: expected 2 or more, got ", asked);
  QALORA_REQUIRE(asked <= config.context_length, UserError, "--context-length ", asked,
                 " is more than the model's context of ", config.context_length, " tokens");
  return asked;
}

TokenBlocks read_blocks(const fs::path& path, const text::Tokenizer& tokenizer, int64_t block_tokens, int64_t limit) {
  TokenBlocks out;
  out.block_tokens = block_tokens;
  if (path.extension() == ".jsonl" || path.extension() == ".json") {
    read_json_lines(path, [&](const nlohmann::json& row, const std::string& where) {
      add_document(out, tokenizer, string_field(row, "text", where), limit);
      return !enough(out, limit);
    });
  } else {
    const MappedFile file(path);
    std::string_view text(reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size());
    if (text.starts_with("\xEF\xBB\xBF")) text.remove_prefix(3);
    QALORA_REQUIRE(valid_utf8(text), DataError, path.string(), ": not UTF-8 text");
    if (!text.empty()) add_document(out, tokenizer, text, limit);
  }
  QALORA_REQUIRE(!out.blocks.empty(), DataError, path.string(), ": no text with two tokens or more in it");
  return out;
}

TokenBlocks read_token_ids(const fs::path& path, const model::LlamaConfig& config, int64_t limit) {
  const nlohmann::json json = io::read_json_file(path);
  QALORA_REQUIRE(json.is_array() && !json.empty(), DataError, path.string(),
                 ": expected one list of token ids or a list of such lists, got ",
                 json.is_array() ? "an empty list" : json.type_name());
  TokenBlocks out;
  if (json.front().is_array()) {
    for (const auto& row : json) out.blocks.push_back(parse_ids(row, path, out.blocks.size(), config));
  } else {
    out.blocks.push_back(parse_ids(json, path, 0, config));
  }
  out.block_tokens = static_cast<int64_t>(out.blocks[0].size());
  for (size_t row = 0; row < out.blocks.size(); ++row) {
    QALORA_REQUIRE(out.blocks[row].size() == out.blocks[0].size(), DataError, path.string(),
                   ": rows must have one length, but row 0 has ", out.block_tokens, " tokens and row ", row, " has ",
                   out.blocks[row].size());
  }
  if (limit > 0) out.blocks.resize(std::min(out.blocks.size(), static_cast<size_t>(limit)));
  out.documents = static_cast<int64_t>(out.blocks.size());
  return out;
}

PerplexityResult run_perplexity(model::Llama& model, const TokenBlocks& blocks, int64_t batch_tokens,
                                at::Tensor* logits) {
  const auto start = std::chrono::steady_clock::now();
  std::vector<ScoreRequest> requests;
  for (const auto& block : blocks.blocks) requests.push_back({block, 0});
  // Summed a block at a time, then in the file's order: the same total whatever the batches were.
  std::vector<double> sums(requests.size());
  run_requests(model, requests, batch_tokens, "perplexity", [&](size_t index, const at::Tensor& hidden) {
    const auto& ids = requests[index].ids;
    const std::span<const int64_t> targets(ids.data() + 1, ids.size() - 1);
    for (double value : log_likelihoods(model, hidden.narrow(0, 0, hidden.size(0) - 1), targets)) sums[index] -= value;
    if (logits == nullptr) return;
    const int64_t chunk = logits_chunk(model);
    for (int64_t begin = 0; begin < hidden.size(0); begin += chunk) {
      const int64_t count = std::min(chunk, hidden.size(0) - begin);
      (*logits)[static_cast<int64_t>(index)]
          .narrow(0, begin, count)
          .copy_(padded_logits(model, hidden.narrow(0, begin, count)));
    }
  });
  PerplexityResult result;
  result.blocks = static_cast<int64_t>(requests.size());
  double sum = 0;
  for (size_t i = 0; i < requests.size(); ++i) {
    sum += sums[i];
    result.tokens += static_cast<int64_t>(requests[i].ids.size()) - 1;
  }
  result.nll = sum / static_cast<double>(result.tokens);
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return result;
}

PerplexityResult save_logits(model::Llama& model, const TokenBlocks& rows, int64_t batch_tokens, const fs::path& path,
                             const std::function<void(const PerplexityResult&)>& report) {
  check_room(rows, model.config.vocab_size, path);
  at::Tensor logits =
      at::empty({static_cast<int64_t>(rows.blocks.size()), rows.block_tokens, model.config.vocab_size}, at::kFloat);
  const PerplexityResult result = run_perplexity(model, rows, batch_tokens, &logits);
  if (report) report(result);
  io::write_safetensors(path, {{"logits", logits}});
  return result;
}

nlohmann::json to_json(const PerplexityResult& result, const TokenBlocks& blocks) {
  const double perplexity = std::exp(result.nll);
  return {{"task", "perplexity"},
          {"protocol", "block"},
          {"context_length", blocks.block_tokens},
          {"tokens", result.tokens},
          {"nll", result.nll},
          {"perplexity", std::isfinite(perplexity) ? nlohmann::json(perplexity) : nlohmann::json()},
          {"documents", blocks.documents},
          {"blocks", result.blocks},
          {"partial_blocks", blocks.partial_blocks},
          {"dropped_tokens", blocks.dropped_tokens},
          {"seconds", result.seconds},
          {"tokens_per_second", result.seconds > 0 ? static_cast<double>(result.tokens) / result.seconds : 0.0}};
}

}  // namespace qalora::eval
