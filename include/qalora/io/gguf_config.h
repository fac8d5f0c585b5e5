// The configuration of a model that lies in a GGUF file, in Hugging Face's terms.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "qalora/io/gguf_file.h"

namespace qalora::io {

// config.json's keys, without "quantization". DataError for another architecture, a key that would change the result
// and is not known, and what is no model (an adapter, one part of several).
nlohmann::json gguf_config(const GgufContents& file);

// What rope_freqs.weight says: its divisors of the rotary frequencies are those of LLaMA 3's scaling with some factor,
// low_freq_factor, high_freq_factor and original_max_position_embeddings. Any three in the same proportion do the same,
// so the usual ones are tried first.
struct Llama3Scaling {
  double factor = 1, low_freq_factor = 1, high_freq_factor = 4;
  int64_t original_context = 8192;

  bool operator==(const Llama3Scaling&) const = default;
};
// [head_dim / 2]; what LLaMA 3's formula divides the frequencies by.
std::vector<double> llama3_divisors(const Llama3Scaling& scaling, double theta, int64_t head_dim);
// Nothing when no parameters give these divisors within 1e-6.
std::optional<Llama3Scaling> fit_llama3(const std::vector<float>& divisors, double theta);

}  // namespace qalora::io
