#include "qalora/train/config.h"

#include <cmath>
#include <set>

#include "qalora/core/error.h"
#include "qalora/core/format.h"

namespace qalora::train {

namespace {

class Problems {
 public:
  void require(bool good, const std::string& text) {
    if (!good) list_.push_back(text);
  }

  void one_of(const char* key, const std::string& value, const std::vector<std::string>& allowed) {
    for (const std::string& candidate : allowed) {
      if (candidate == value) return;
    }
    list_.push_back(
        message(key, " is '", value, "', expected one of ", join(allowed, ", "), did_you_mean(value, allowed)));
  }

  void at_least(const char* key, int64_t value, int64_t least) {
    require(value >= least && value <= (int64_t{1} << 40),
            message(key, " is ", value, ", expected ", least, " or more"));
  }

  void in_range(const char* key, double value, double low, double high) {
    require(std::isfinite(value) && value >= low && value <= high,
            message(key, " is ", value, ", expected ", low, " to ", high));
  }

  std::vector<std::string> take() { return std::move(list_); }

 private:
  std::vector<std::string> list_;
};

const std::vector<std::string>& projections() {
  static const std::vector<std::string> names = {"q_proj",    "k_proj",  "v_proj",   "o_proj",
                                                 "gate_proj", "up_proj", "down_proj"};
  return names;
}

void check_combinations(const TrainConfig& c, Problems& problems) {
  problems.require(c.batch_size % std::max<int64_t>(1, c.micro_batch_size) == 0,
                   message("micro_batch_size ", c.micro_batch_size, " does not divide batch_size ", c.batch_size));
  problems.require(c.initialize == "checkpoint" || c.full(), "initialize = \"random\" needs method = \"full\"");
  problems.require(c.initial_adapter.empty() || !c.full(), "initial_adapter has no meaning with method = \"full\"");
  problems.require(c.eval_interval == 0 || c.eval_examples > 0 || !c.eval_data.empty(),
                   "eval_interval is set, but neither eval_data nor eval_examples says what to evaluate on");
  problems.require(c.eval_data.empty() || c.eval_examples == 0, "eval_data and eval_examples exclude each other");
  problems.require(!c.group_by_length || !c.packing,
                   "group_by_length and packing exclude each other: packed rows have one length");
  problems.require(!c.group_by_length || c.shuffle, "group_by_length needs shuffle = true");
}

}  // namespace

std::vector<std::string> validate(const TrainConfig& c) {
  Problems problems;
  problems.require(!c.model.empty(), "model is missing: the checkpoint folder to train (--model DIR)");
  problems.require(!c.data.empty(), "data is missing: the training file (--data FILE)");
  problems.one_of("method", c.method, {"qalora", "lora", "full"});
  problems.one_of("initialize", c.initialize, {"checkpoint", "random"});
  problems.one_of("pooling", c.pooling, {"sum", "mean"});
  problems.one_of("schedule", c.schedule, {"constant", "linear", "cosine"});
  problems.one_of("save_dtype", c.save_dtype, {"float16", "bfloat16", "float32"});
  problems.one_of("recompute", c.recompute, {"layer", "mlp"});
  problems.at_least("rank", c.rank, 1);
  problems.at_least("steps", c.steps, 1);
  problems.at_least("batch_size", c.batch_size, 1);
  problems.at_least("micro_batch_size", c.micro_batch_size, 0);
  problems.at_least("sequence_length", c.sequence_length, 2);
  problems.at_least("source_length", c.source_length, 0);
  problems.at_least("target_length", c.target_length, 0);
  problems.at_least("warmup_steps", c.warmup_steps, 0);
  problems.at_least("log_interval", c.log_interval, 1);
  problems.at_least("eval_interval", c.eval_interval, 0);
  problems.at_least("eval_examples", c.eval_examples, 0);
  problems.at_least("checkpoint_interval", c.checkpoint_interval, 0);
  problems.at_least("keep_checkpoints", c.keep_checkpoints, 0);
  problems.at_least("seed", c.seed, 0);
  problems.in_range("alpha", c.alpha, 1e-6, 1e6);
  problems.in_range("dropout", c.dropout, 0, 0.99);
  problems.in_range("learning_rate", c.learning_rate, 0, 10);
  problems.in_range("weight_decay", c.weight_decay, 0, 10);
  problems.in_range("max_grad_norm", c.max_grad_norm, 0, 1e9);
  problems.in_range("adam_beta1", c.adam_beta1, 0, 0.9999999);
  problems.in_range("adam_beta2", c.adam_beta2, 0, 0.9999999);
  problems.in_range("adam_epsilon", c.adam_epsilon, 1e-30, 1);
  problems.require(!c.targets.empty(), "targets is empty: name at least one of " + join(projections(), ", "));
  for (const std::string& target : c.targets) problems.one_of("targets", target, projections());
  problems.require(std::set<std::string>(c.targets.begin(), c.targets.end()).size() == c.targets.size(),
                   "targets names a layer twice");
  check_combinations(c, problems);
  return problems.take();
}

}  // namespace qalora::train
