// What the GGUF files of the LLaMA family call things, and how their rows lie.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace qalora::io {

// "blk.3.attn_q.weight" <-> "model.layers.3.self_attn.q_proj.weight"; nothing for a name that no model here has.
std::optional<std::string> name_from_gguf(std::string_view name);
std::optional<std::string> name_to_gguf(std::string_view name);

// Rotary embedding turns neighbouring pairs there and the two halves of a head here, so the rows of q and k are sorted
// otherwise: 2 j + t of a head there is t head_dim / 2 + j here. Only in architecture "llama"; the others turn halves
// there too.
// How many heads the tensor "P.weight", "P.bias" (in Hugging Face's spelling) has rows of; 0 where the rows lie as they
// do here.
int64_t gguf_permuted_heads(std::string_view architecture, std::string_view name, int64_t heads, int64_t kv_heads);
// The row there of row `row` here; of rows = heads * head_dim.
inline int64_t gguf_row(int64_t row, int64_t head_dim) {
  const int64_t head = row / head_dim, within = row % head_dim, half = head_dim / 2;
  return head * head_dim + 2 * (within % half) + within / half;
}

}  // namespace qalora::io
