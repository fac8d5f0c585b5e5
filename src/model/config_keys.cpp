#include "qalora/model/config_keys.h"

namespace qalora::model {

using nlohmann::json;

const std::set<std::string>& handled_keys() {
  static const std::set<std::string> keys = {"model_type",          "vocab_size",        "hidden_size",
                                             "intermediate_size",   "num_hidden_layers", "num_attention_heads",
                                             "num_key_value_heads", "head_dim",          "max_position_embeddings",
                                             "rms_norm_eps",        "initializer_range", "tie_word_embeddings",
                                             "attention_bias",      "mlp_bias",          "rope_theta",
                                             "rope_scaling",        "rope_parameters",   "quantization",
                                             "quantization_config", "sliding_window",    "use_sliding_window",
                                             "layer_types",         "architectures",     "auto_map"};
  return keys;
}

const std::set<std::string>& harmless_keys() {
  static const std::set<std::string> keys = {
      // where the file comes from
      "transformers_version", "torch_dtype", "dtype", "name_or_path", "unsloth_version", "unsloth_fixed", "license",
      "model_name", "finetuning_task", "tokenizer_class", "is_decoder", "task_specific_params", "problem_type",
      "prefix", "id2label", "label2id", "return_dict", "output_attentions", "output_hidden_states", "torchscript",
      "use_bfloat16", "tf_legacy_loss", "chunk_size_feed_forward", "attn_implementation", "qalora",
      // ids: read from the tokenizer's files
      "bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "decoder_start_token_id", "forced_bos_token_id",
      "forced_eos_token_id",
      // how to generate
      "use_cache", "max_length", "min_length", "do_sample", "early_stopping", "num_beams", "num_beam_groups",
      "diversity_penalty", "temperature", "top_k", "top_p", "typical_p", "repetition_penalty", "length_penalty",
      "no_repeat_ngram_size", "bad_words_ids", "encoder_no_repeat_ngram_size", "num_return_sequences", "output_scores",
      "return_dict_in_generate", "remove_invalid_values", "exponential_decay_length_penalty", "suppress_tokens",
      "begin_suppress_tokens", "cache_implementation", "max_sequence_length",
      // how a product is cut for several devices: other rounding, same result
      "pretraining_tp",
      // from which layer a sliding window would start; the window itself is handled
      "max_window_layers"};
  return keys;
}

const std::set<std::string>& rope_keys() {
  static const std::set<std::string> keys = {"rope_type",
                                             "type",
                                             "rope_theta",
                                             "factor",
                                             "original_max_position_embeddings",
                                             "low_freq_factor",
                                             "high_freq_factor",
                                             "beta_fast",
                                             "beta_slow",
                                             "attention_factor",
                                             "mscale",
                                             "mscale_all_dim",
                                             "truncate",
                                             "partial_rotary_factor",
                                             "finetuned"};
  return keys;
}

const std::map<std::string, json>& neutral_values() {
  static const std::map<std::string, json> values = {{"hidden_act", "silu"},
                                                     {"hidden_activation", "silu"},
                                                     {"attention_dropout", 0.0},
                                                     {"hidden_dropout", 0.0},
                                                     {"resid_pdrop", 0.0},
                                                     {"embd_pdrop", 0.0},
                                                     {"partial_rotary_factor", 1.0},
                                                     {"rope_interleaved", false},
                                                     {"rope_traditional", false},
                                                     {"clip_qkv", false},
                                                     {"qk_norm", false},
                                                     {"use_qk_norm", false},
                                                     {"attn_logit_softcapping", false},
                                                     {"final_logit_softcapping", false},
                                                     {"embedding_multiplier", 1.0},
                                                     {"residual_multiplier", 1.0},
                                                     {"logits_scaling", 1.0},
                                                     {"logit_scale", 1.0},
                                                     {"num_experts", 0},
                                                     {"num_local_experts", 0},
                                                     {"n_routed_experts", 0},
                                                     {"attention_chunk_size", 0},
                                                     {"parallel_attn", false},
                                                     {"pruned_heads", json::object()},
                                                     {"is_encoder_decoder", false},
                                                     {"add_cross_attention", false},
                                                     {"tie_encoder_decoder", false},
                                                     {"cross_attention_hidden_size", nullptr},
                                                     {"no_rope_layer_interval", 0},
                                                     {"attn_temperature_tuning", false},
                                                     {"alibi", false},
                                                     {"use_parallel_residual", false}};
  return values;
}

}  // namespace qalora::model
