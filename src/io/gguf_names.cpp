#include "qalora/io/gguf_names.h"

#include <array>
#include <charconv>
#include <utility>

namespace qalora::io {
namespace {

using Pair = std::pair<std::string_view, std::string_view>;

constexpr std::array<Pair, 3> kOutside = {
    {{"token_embd", "model.embed_tokens"}, {"output_norm", "model.norm"}, {"output", "lm_head"}}};

constexpr std::array<Pair, 11> kInBlock = {{{"attn_norm", "input_layernorm"},
                                            {"attn_q", "self_attn.q_proj"},
                                            {"attn_k", "self_attn.k_proj"},
                                            {"attn_v", "self_attn.v_proj"},
                                            {"attn_output", "self_attn.o_proj"},
                                            {"attn_q_norm", "self_attn.q_norm"},
                                            {"attn_k_norm", "self_attn.k_norm"},
                                            {"ffn_norm", "post_attention_layernorm"},
                                            {"ffn_gate", "mlp.gate_proj"},
                                            {"ffn_up", "mlp.up_proj"},
                                            {"ffn_down", "mlp.down_proj"}}};

constexpr std::string_view kBlock = "blk.", kLayer = "model.layers.";

struct Spelling {
  std::string_view layers;  // the prefix of a layer
  std::string_view Pair::*part;
};
constexpr Spelling kGguf = {kBlock, &Pair::first}, kHuggingFace = {kLayer, &Pair::second};

std::string_view find(auto& table, std::string_view name, const Spelling& from, const Spelling& to) {
  for (const Pair& pair : table) {
    if (pair.*from.part == name) return pair.*to.part;
  }
  return {};
}

// "7" and "12", not "07", "+1" or "".
bool is_index(std::string_view text) {
  uint32_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size() && (text.size() == 1 || text.front() != '0');
}

std::optional<std::string> translate(std::string_view name, const Spelling& from, const Spelling& to) {
  const size_t dot = name.rfind('.');
  if (dot == std::string_view::npos) return std::nullopt;
  const std::string_view module = name.substr(0, dot), suffix = name.substr(dot);
  if (suffix != ".weight" && suffix != ".bias") return std::nullopt;
  if (!module.starts_with(from.layers)) {
    const std::string_view other = find(kOutside, module, from, to);
    return other.empty() ? std::nullopt : std::optional(std::string(other) + std::string(suffix));
  }
  const std::string_view rest = module.substr(from.layers.size());
  const size_t end = rest.find('.');
  if (end == std::string_view::npos || !is_index(rest.substr(0, end))) return std::nullopt;
  const std::string_view other = find(kInBlock, rest.substr(end + 1), from, to);
  if (other.empty()) return std::nullopt;
  return std::string(to.layers) + std::string(rest.substr(0, end + 1)) + std::string(other) + std::string(suffix);
}

}  // namespace

std::optional<std::string> name_from_gguf(std::string_view name) { return translate(name, kGguf, kHuggingFace); }
std::optional<std::string> name_to_gguf(std::string_view name) { return translate(name, kHuggingFace, kGguf); }

int64_t gguf_permuted_heads(std::string_view architecture, std::string_view name, int64_t heads, int64_t kv_heads) {
  if (architecture != "llama") return 0;
  const std::string_view module = name.substr(0, name.rfind('.'));
  return module.ends_with(".q_proj") ? heads : module.ends_with(".k_proj") ? kv_heads : 0;
}

}  // namespace qalora::io
