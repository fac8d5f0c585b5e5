// What the configuration of a GPTQ or AWQ checkpoint says: quantize_config.json, quant_config.json, or config.json's
// quantization_config.
#pragma once

#include <cstdint>
#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "qalora/core/file.h"

namespace qalora::io {

enum class ForeignLayout {
  kGptq,  // qweight [in_features * bits / 32, out_features], codes along the inputs as one bit stream; qzeros along the
          // outputs
  kPlanar,  // the same words, but of 32 codes of 3 bits first the two low bits each (2 words), then the high ones (1
            // word)
  kAwq,  // qweight [in_features, out_features / 8], 4 bits along the outputs, eight of them in the order 0, 2, 4, 6, 1,
         // 3, 5, 7
};

// How a zero point is read from what is stored.
enum class ZeroRule {
  kStored,        // GPTQ v2, planar, AWQ
  kFieldPlusOne,  // GPTQ v1 as AutoGPTQ computes: stored + 1, not masked, so that it may be 2^bits
  kWordPlusOne,   // GPTQ v1 as GPTQModel writes: 1 was subtracted of every field of a word at once, with borrows (3
                  // bits: modulo 8)
};

struct ForeignQuantization {
  ForeignLayout layout = ForeignLayout::kGptq;
  ZeroRule zeros = ZeroRule::kStored;
  int bits = 0;
  int64_t group_size = 0;  // -1: whole rows
  bool overrides = false;  // some modules have bits and group sizes of their own, which their shapes then say
  bool act_order = false;  // groups were made of inputs in another order: only a module's g_idx says which
  std::string name;        // the file that says so, for messages
};

// Does the folder say that its weights are GPTQ's or AWQ's? config: its config.json, or null
bool is_foreign_quantised(const fs::path& folder, const nlohmann::json& config);
// DataError that names the file and the key: what is missing, contradicts itself, or is a layout that is not read, with
// what to do.
ForeignQuantization read_foreign_quantization(const fs::path& folder, const nlohmann::json& config);

// Does config.json's architecture have a bias in this linear layer ("model.layers.0.self_attn.q_proj")?
bool architecture_has_bias(const nlohmann::json& config, const std::string& module);

}  // namespace qalora::io
