// Everything a fine-tuning run is told. The command line and config.toml bind to these fields by the same names.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace qalora::train {

struct TrainConfig {
  // What is trained on what.
  std::string model;  // checkpoint folder: quantised for "qalora", dense for "lora" and "full"
  std::string data;   // the training file
  std::string out;    // the run folder
  std::string method = "qalora";
  std::string initial_adapter;            // start A and B from this adapter; "": a fresh one
  std::string initialize = "checkpoint";  // "full" only: "random" starts from config.json alone

  // The adapter.
  int64_t rank = 64;
  double alpha = 16;
  double dropout = 0;
  std::string pooling = "sum";
  std::vector<std::string> targets = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"};

  // The data.
  std::string data_format = "auto";
  std::string template_name = "alpaca";
  int64_t sequence_length = 1024;
  int64_t source_length = 0;  // a prompt is cut to this, 0: only by sequence_length
  int64_t target_length = 0;  // an answer likewise
  bool packing = false;
  bool shuffle = true;
  bool group_by_length = false;
  bool train_on_prompt = false;
  bool skip_bad_records = false;

  // The steps.
  int64_t steps = 1000;
  int64_t batch_size = 16;       // rows of one optimizer step
  int64_t micro_batch_size = 1;  // rows of one forward pass
  double learning_rate = 2e-5;
  std::string schedule = "constant";
  int64_t warmup_steps = 0;
  double weight_decay = 0;
  double max_grad_norm = 0.3;
  double adam_beta1 = 0.9;
  double adam_beta2 = 0.999;
  double adam_epsilon = 1e-8;
  std::string recompute = "layer";  // what gradient_checkpointing recomputes: layer or mlp
  bool gradient_checkpointing = false;
  int64_t seed = 42;

  // What is written when.
  int64_t log_interval = 10;
  int64_t eval_interval = 0;           // 0: never
  std::string eval_data;               // a file of its own; "": `eval_examples` of the training file
  int64_t eval_examples = 0;           // kept out of training
  int64_t checkpoint_interval = 500;   // 0: only at the end
  int64_t keep_checkpoints = 3;        // 0: all
  std::string save_dtype = "float16";  // "full": dtype of the final checkpoint

  bool full() const { return method == "full"; }
};

// Every problem at once, each a sentence that names the key; empty when fine. Looks at no file.
std::vector<std::string> validate(const TrainConfig& config);

}  // namespace qalora::train
