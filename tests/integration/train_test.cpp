// What training with the real binary does: methods, batches, what is kept, what is refused.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

#include "integration/training.h"
#include "qalora/io/checkpoint.h"

namespace qalora::test {
namespace {

class Train : public Training {
 protected:
  // The single step event of a run of one step.
  static json first_step(const std::string& out, const std::vector<std::string>& more) {
    const Outcome run = finetune(folder(out), more);
    EXPECT_EQ(run.exit_code, 0) << run.err;
    return metrics_of(folder(out), "step").at(0);
  }

  static void expect_refused(const fs::path& out, const std::vector<std::string>& more, int code,
                             const std::string& part) {
    const Outcome run = finetune(out, more);
    EXPECT_EQ(run.exit_code, code) << run.err;
    EXPECT_NE(run.err.find(part), std::string::npos) << "lacks '" << part << "': " << run.err;
    EXPECT_EQ(run.err.find("internal error"), std::string::npos) << run.err;
  }
};

std::vector<std::string> joined(std::vector<std::string> a, const std::vector<std::string>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

// Mean loss of `count` step events from the `first` on.
double mean_loss(const std::vector<json>& steps, size_t first, size_t count) {
  double sum = 0;
  for (size_t i = first; i < first + count; ++i) sum += steps.at(i).at("loss").get<double>();
  return sum / static_cast<double>(count);
}

TEST_F(Train, DenseMethodsLearn) {
  // "full" from random weights, as the miniature knows its tuning data's world already.
  fs::create_directories(folder("blank"));
  for (const char* file : {"config.json", "tokenizer.model", "tokenizer_config.json"}) {
    fs::copy(fs::path(dense()) / file, folder("blank") / file);
  }
  const std::vector<std::string> more = {"--steps",         "30", "--dropout", "0", "--eval-interval", "15",
                                         "--eval-examples", "8",  "-q"};
  const std::string weights = digest(fs::path(dense()) / "model.safetensors");
  expect_trained(folder("lora"), joined(more, {"--model", dense(), "--method", "lora"}));
  expect_trained(folder("full"),
                 joined(more, {"--model", folder("blank"), "--method", "full", "--initialize", "random"}));
  EXPECT_EQ(digest(fs::path(dense()) / "model.safetensors"), weights);  // the base is never touched
  for (const std::string method : {"lora", "full"}) {
    const std::vector<json> steps = metrics_of(folder(method), "step"), held_out = metrics_of(folder(method), "eval");
    ASSERT_EQ(steps.size(), 30u);
    EXPECT_LT(mean_loss(steps, 22, 8), mean_loss(steps, 0, 8)) << method;
    EXPECT_LT(held_out.at(1).at("loss").get<double>(), held_out.at(0).at("loss").get<double>()) << method;
  }
}

TEST_F(Train, FullMovesEveryWeightAndLoraOnlyItsOwn) {
  expect_trained(folder("moved"),
                 {"--model", dense(), "--method", "full", "--steps", "3", "--save-dtype", "float32", "-q"});
  const io::Checkpoint before{fs::path(dense())}, after{folder("moved") / "model"};
  for (const std::string& name : before.names()) {
    EXPECT_FALSE(at::equal(before.read(name).to(at::kFloat), after.read(name))) << name << " was not trained";
  }
  const auto largest_b = [](const std::string& run) {
    double largest = 0;
    const io::SafetensorsFile file(folder(run) / "adapter/adapter_model.safetensors");
    for (const auto& [name, info] : file.tensors()) {
      if (name.find("lora_B") != std::string::npos)
        largest = std::max(largest, file.read(name).abs().max().item<double>());
    }
    return largest;
  };
  for (const auto& [name, rate] : {std::pair("still", "0"), {"learning", "1e-3"}}) {
    expect_trained(folder(name),
                   {"--model", dense(), "--method", "lora", "--steps", "3", "--learning-rate", rate, "-q"});
  }
  EXPECT_EQ(largest_b("still"), 0);  // at a rate of zero B stays as it began
  EXPECT_GT(largest_b("learning"), 0);
}

TEST_F(Train, CuttingABatchInPartsChangesNothing) {
  const std::vector<std::string> exact = {"--shuffle", "false", "--dropout", "0", "--dtype", "float32", "-q"};
  const std::vector<std::string> one = joined(exact, {"--steps", "1", "--batch-size", "8"});
  const json whole = first_step("whole-batch", joined(one, {"--micro-batch-size", "8"}));
  const json parts = first_step("parts", joined(one, {"--micro-batch-size", "1"}));
  // The same f32 losses and gradients summed in another order: about 10^3 terms of size one, each rounded by 2^-24,
  // stay below.
  EXPECT_NEAR(parts.at("loss").get<double>(), whole.at("loss").get<double>(), 1e-5);
  EXPECT_NEAR(parts.at("grad_norm").get<double>() / whole.at("grad_norm").get<double>(), 1, 1e-4);
  EXPECT_EQ(parts.at("tokens"), whole.at("tokens"));
  // Must differ: the mean of the rows' means, which accumulation without weights would give.
  expect_trained(folder("rows"), joined(exact, {"--steps", "8", "--batch-size", "1", "--micro-batch-size", "1",
                                                "--learning-rate", "0"}));
  const std::vector<json> rows = metrics_of(folder("rows"), "step");
  ASSERT_EQ(rows.size(), 8u);
  EXPECT_GT(std::abs(mean_loss(rows, 0, 8) - whole.at("loss").get<double>()), 1e-3);
}

TEST_F(Train, GradientCheckpointingChangesNoBit) {
  const std::vector<std::string> more = {"--steps", "4", "-q"};
  expect_trained(folder("kept"), more);
  expect_trained(folder("recomputed"), joined(more, {"--gradient-checkpointing", "true"}));
  expect_trained(folder("other-masks"), joined(more, {"--dropout", "0.2"}));
  const auto adapter = [](const std::string& name) {
    return digest(folder(name) / "adapter/adapter_model.safetensors");
  };
  EXPECT_EQ(adapter("recomputed"), adapter("kept"));  // dropout draws the same masks again
  EXPECT_NE(adapter("other-masks"), adapter("kept"));
}

TEST_F(Train, TheLastCheckpointsAndTheBestAreKept) {
  const fs::path run = folder("keeping");
  // A rate that first learns and then destroys: the best evaluation is not the last.
  expect_trained(
      run, {"--steps", "8", "--checkpoint-interval", "2", "--keep-checkpoints", "2", "--eval-interval", "1",
            "--eval-examples", "12", "--schedule", "constant", "--learning-rate", "0.02", "--dropout", "0", "-q"});
  std::set<std::string> names;
  for (const auto& entry : fs::directory_iterator(run / "checkpoints")) names.insert(entry.path().filename());
  EXPECT_EQ(names, (std::set<std::string>{"step-6", "step-8"}));
  const json best = json::parse(read_file(run / "best/best.json"));
  double lowest = 1e9;
  int step = 0;
  for (const json& event : metrics_of(run, "eval")) {
    const double loss = event.at("loss");
    EXPECT_EQ(event.at("best"), loss < lowest);
    if (loss < lowest) step = event.at("step");
    lowest = std::min(lowest, loss);
  }
  EXPECT_EQ(best.at("loss"), lowest);
  EXPECT_EQ(best.at("step"), step);
  ASSERT_LT(step, 8);  // else the last line would say nothing
  EXPECT_NE(digest(run / "best/adapter_model.safetensors"), digest(run / "adapter/adapter_model.safetensors"));
}

// A base whose last norm is finite but so large that every logit overflows.
void write_overflowing(const fs::path& from, const fs::path& to) {
  fs::copy(from, to, fs::copy_options::recursive);
  const io::SafetensorsFile file(from / "model.safetensors");
  std::map<std::string, at::Tensor> tensors;
  for (const auto& [name, info] : file.tensors()) tensors[name] = file.read(name);
  tensors["model.norm.weight"] = at::full({64}, 3e38f, at::kFloat);
  io::write_safetensors(to / "model.safetensors", tensors);
}

TEST_F(Train, ThreeNonFiniteLossesEndARun) {
  write_overflowing(dense(), folder("huge"));
  const Outcome run = finetune(folder("diverged"), {"--model", folder("huge"), "--method", "lora", "--steps", "9"});
  EXPECT_EQ(run.exit_code, 6) << run.err;
  for (const char* part : {"step 1 skipped", "step 2 skipped", "3 steps in a row", "step 3 (", "tune.json: lines ",
                           "start a new run with a lower learning_rate"}) {
    EXPECT_NE(run.err.find(part), std::string::npos) << part << "\n" << run.err;
  }
  EXPECT_EQ(run.err.find("--initial-adapter"), std::string::npos) << run.err;  // nothing was saved
  EXPECT_EQ(metrics_of(folder("diverged"), "skipped").size(), 3u);
  // With a checkpoint of before it went wrong, here by a huge B after the second step, the advice names it and is good.
  const fs::path late = folder("late");
  const std::vector<std::string> constant = {
      "--schedule", "constant", "--checkpoint-interval", "1", "--keep-checkpoints", "0", "-q"};
  expect_trained(late, joined(constant, {"--steps", "2"}));
  const fs::path adapter = late / "checkpoints/step-2/adapter_model.safetensors";
  std::map<std::string, at::Tensor> tensors;
  {
    const io::SafetensorsFile file(adapter);
    for (const auto& [name, info] : file.tensors()) {
      tensors[name] = file.read(name);
      if (name.find("lora_B") != std::string::npos) tensors[name].fill_(3e38);
    }
  }
  io::write_safetensors(adapter, tensors);
  const Outcome resumed = finetune(late, joined(constant, {"--steps", "9", "--resume"}));
  EXPECT_EQ(resumed.exit_code, 6) << resumed.err;
  const std::string good = late / "checkpoints/step-1";
  EXPECT_NE(resumed.err.find("--initial-adapter " + good + "\n"), std::string::npos) << resumed.err;
  EXPECT_EQ(resumed.err.find("resume"), std::string::npos) << resumed.err;  // which would refuse another learning_rate
  expect_trained(folder("after"),
                 joined(constant, {"--steps", "2", "--initial-adapter", good, "--learning-rate", "1e-4"}));
}

TEST_F(Train, NobodysFolderIsReplaced) {
  const fs::path place = folder("place"), model = place / "model";
  fs::create_directories(place);
  fs::copy(base(), model, fs::copy_options::recursive);
  fs::copy(tune(), place / "d.json");
  const std::string weights = digest(model / "model.safetensors");
  const std::vector<std::string> here = {"--model", model, "--data", place / "d.json", "--steps", "1"};
  for (const std::vector<std::string>& more : {here, joined(here, {"--force"})}) {
    expect_refused(place, more, 2, "holds the input");
    expect_refused(model, more, 2, "same place");
    expect_refused(model / "run", more, 2, "lies in the input");
    expect_refused(place / "d.json", more, 2, "same place");
  }
  write_file(folder("notes/notes.txt"), "precious");
  write_file(folder("notes/adapter/a.txt"), "precious");
  expect_refused(folder("notes"), {"--steps", "1", "--force"}, 2, "holds no run");
  EXPECT_EQ(read_file(folder("notes/adapter/a.txt")), "precious");
  EXPECT_EQ(digest(model / "model.safetensors"), weights);
  EXPECT_FALSE(fs::exists(model / "run"));
  // Its own run may be replaced.
  expect_trained(place / "run", joined(here, {"-q"}));
  expect_refused(place / "run", here, 2, "--resume");
  expect_trained(place / "run", joined(here, {"--force", "-q"}));
  expect_refused(place / "run", joined(here, {"--force", "--initial-adapter", place / "run"}), 2, "same place");
}

TEST_F(Train, ImpossibleOutputsAreRefusedBeforeAnythingIsRead) {
  const std::vector<std::string> unread = {"--steps", "1", "--data", folder("nowhere.json")};
  expect_refused(folder(std::string(300, 'x')), unread, 5, "too long");
  expect_refused(fs::path(tune()) / "x", unread, 2, "is a file");
  expect_refused("/proc/qalora", unread, 5, "cannot be written");
}

TEST_F(Train, ALossThatRoseIsSaid) {
  const std::vector<std::string> wild = {"--steps",    "24",       "--learning-rate", "10", "--max-grad-norm", "0",
                                         "--schedule", "constant", "--warmup-steps",  "0"};
  const Outcome risen = finetune(folder("wild"), wild);
  EXPECT_EQ(risen.exit_code, 0) << risen.err;
  EXPECT_NE(risen.err.find("the loss rose from "), std::string::npos) << risen.err;
  const Outcome calm = finetune(folder("calm"), {"--steps", "24"});
  EXPECT_EQ(calm.err.find("the loss rose from "), std::string::npos) << calm.err;
}

TEST_F(Train, HeldOutDataAreCheckedFirst) {
  write_file(folder("ids.jsonl"), "{\"input_ids\": [1, 5, 6], \"labels\": [1, 5, 6]}\n");
  write_file(folder("bad.jsonl"), "{\"input_ids\": [1, 5, 6], \"labels\": [1, 5, 99999]}\n");
  const std::vector<std::string> tokens = {"--data-format", "tokens", "--data",          folder("ids.jsonl"),
                                           "--steps",       "1",      "--eval-interval", "1"};
  expect_refused(folder("no-run"), joined(tokens, {"--eval-data", folder("bad.jsonl")}), 3, "bad.jsonl:1: label 99999");
  // Ids need no tokenizer, the held-out text does.
  fs::copy(base(), folder("bare"), fs::copy_options::recursive);
  fs::remove(folder("bare/tokenizer.model"));
  const std::vector<std::string> bare = {"--data-format", "auto", "--model", folder("bare"), "--eval-data", tune()};
  expect_refused(folder("no-run"), joined(tokens, bare), 2, "has no tokenizer.model");
  EXPECT_FALSE(fs::exists(folder("no-run")));
  const Outcome unused = finetune(folder("unused"), {"--steps", "1", "--eval-examples", "3"});
  EXPECT_EQ(unused.exit_code, 0);
  EXPECT_NE(unused.err.find("eval_interval is 0: nothing will be evaluated"), std::string::npos) << unused.err;
}

TEST_F(Train, ADryRunRefusesWhatTheRunWould) {
  const std::vector<std::string> dry = {"--dry-run"};
  EXPECT_EQ(finetune(folder("dry-new"), dry).exit_code, 0);
  expect_trained(folder("dry-old"), {"--steps", "1", "-q"});
  expect_refused(folder("dry-old"), dry, 2, "holds a run already");
  EXPECT_EQ(finetune(folder("dry-old"), joined(dry, {"--force"})).exit_code, 0);
  fs::copy(base(), folder("weightless"), fs::copy_options::recursive);
  fs::remove(folder("weightless/model.safetensors"));
  const Outcome weightless = finetune(folder("dry-new"), joined(dry, {"--model", folder("weightless")}));
  EXPECT_NE(weightless.exit_code, 0);
  EXPECT_NE(weightless.err.find("model.safetensors"), std::string::npos) << weightless.err;
}

TEST_F(Train, ADryRunListsBadRecordsAndWindows) {
  std::string lines;
  for (int i = 0; i < 8; ++i) lines += "{\"instruction\": \"a\", \"output\": 5}\n";
  write_file(folder("bad-lines.jsonl"), lines + "{\"instruction\": \"a\", \"output\": \"b\"}\n");
  const std::vector<std::string> more = {
      "--data", folder("bad-lines.jsonl"), "--data-format", "auto", "--skip-bad-records", "true", "--dry-run"};
  const Outcome text = finetune(folder("dry-bad"), more);
  ASSERT_EQ(text.exit_code, 0) << text.err;
  EXPECT_NE(text.out.find("bad-lines.jsonl:5: 'output' is number"), std::string::npos) << text.out;
  EXPECT_EQ(text.out.find("bad-lines.jsonl:6: "), std::string::npos) << text.out;
  EXPECT_NE(text.out.find("and 3 more"), std::string::npos) << text.out;
  const json bad = json::parse(finetune(folder("dry-bad"), joined(more, {"--json"})).out).at("bad");
  ASSERT_EQ(bad.size(), 8u);
  EXPECT_EQ(bad[7].at("line"), 8);
  std::string long_text;
  for (int i = 0; i < 300; ++i) long_text += "The miller counts the stones of the bridge. ";
  write_file(folder("long.txt"), long_text);
  const std::vector<std::string> plain = {"--data", folder("long.txt"), "--data-format", "text", "--dry-run"};
  const Outcome windows = finetune(folder("dry-bad"), plain);
  ASSERT_EQ(windows.exit_code, 0) << windows.err;
  EXPECT_NE(windows.out.find("1 long texts are trained in "), std::string::npos) << windows.out;
  const json dry = json::parse(finetune(folder("dry-bad"), joined(plain, {"--json"})).out);
  EXPECT_EQ(dry.at("windows"), dry.at("examples"));
  EXPECT_GT(dry.at("windows"), 10);
  EXPECT_EQ(dry.at("trained_tokens"), dry.at("tokens").get<int64_t>() - dry.at("examples").get<int64_t>());
}

TEST_F(Train, APartOfAFileIsSaidBeforeItIsTrainedOn) {
  const std::string whole = read_file(tune());
  write_file(folder("part.json"), whole.substr(0, whole.size() / 2));
  const std::vector<std::string> more = {"--data", folder("part.json"), "--steps", "1"};
  expect_refused(folder("part"), more, 3, "is not closed before the end of its line");
  const Outcome run = finetune(folder("part"), joined(more, {"--skip-bad-records", "true"}));
  EXPECT_EQ(run.exit_code, 0) << run.err;
  EXPECT_NE(run.err.find("left out, the first in line 1: "), std::string::npos) << run.err;
  EXPECT_NE(run.err.find("is probably a part of one"), std::string::npos) << run.err;
}

TEST_F(Train, WhatIsCutNamesItsLimit) {
  const std::vector<std::string> more = {"--target-length", "4", "--source-length", "2000", "--steps", "1"};
  const Outcome dry = finetune(folder("cut"), joined(more, {"--dry-run"}));
  EXPECT_NE(dry.out.find(" by target_length 4)\n"), std::string::npos) << dry.out;
  EXPECT_EQ(dry.out.find("source_length 2000"), std::string::npos) << dry.out;
  const Outcome run = finetune(folder("cut"), more);
  EXPECT_NE(run.err.find(" by target_length 4), "), std::string::npos) << run.err;
  EXPECT_EQ(run.out.rfind("trained 1 steps in ", 0), 0u) << run.out;
  EXPECT_EQ(run.out.find("up to step"), std::string::npos) << run.out;
}

TEST_F(Train, ARankThatNoMemoryHoldsIsNamed) {
  const std::vector<std::string> more = {"--rank", "99999999", "--steps", "1"};
  const Outcome dry = finetune(folder("rank"), joined(more, {"--dry-run"}));
  EXPECT_EQ(dry.exit_code, 0) << dry.err;
  EXPECT_NE(dry.out.find("this does not fit: lower rank (it is 99999999)"), std::string::npos) << dry.out;
  expect_refused(folder("rank"), more, 4, "the adapter of rank 99999999 takes ");
  EXPECT_FALSE(fs::exists(folder("rank")));
}

TEST_F(Train, ADryRunShowsEveryTurnAndWhatTheRunNeeds) {
  write_file(folder("chat.jsonl"),
             R"({"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Holgo."}, )"
             R"({"role": "user", "content": "When?"}, {"role": "assistant", "content": "In autumn."}]})"
             "\n");
  const std::vector<std::string> chat = {"--data-format", "messages", "--template",
                                         "none",          "--data",   folder("chat.jsonl")};
  const std::vector<std::string> more = joined(chat, {"--dry-run"});
  const Outcome text = finetune(folder("dry"), more);
  ASSERT_EQ(text.exit_code, 0) << text.err;
  EXPECT_NE(text.out.find("<s>Who?>>> Holgo.</s><<<\nWhen?>>> In autumn.</s><<<"), std::string::npos) << text.out;
  EXPECT_NE(text.out.find("\n  memory          about "), std::string::npos) << text.out;
  EXPECT_NE(text.out.find("\n  time            at least "), std::string::npos) << text.out;
  const json dry = json::parse(finetune(folder("dry"), joined(more, {"--json"})).out);
  EXPECT_FALSE(fs::exists(folder("dry")));
  std::vector<bool> trained;
  for (const json& span : dry.at("example").at("spans")) trained.push_back(span.at("trained"));
  EXPECT_EQ(trained, (std::vector<bool>{false, true, false, true}));
  // What the run itself says before its first step, from the loaded model.
  const Outcome run = finetune(folder("wet"), joined(chat, {"--steps", "1", "--json", "-q"}));
  ASSERT_EQ(run.exit_code, 0) << run.err;
  EXPECT_EQ(json_lines(run.out).front().at("estimated_memory_bytes"), dry.at("estimated_memory_bytes"));
}

}  // namespace
}  // namespace qalora::test
