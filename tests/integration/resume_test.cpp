// Stopping and going on with the real binary: what comes out does not depend on where a run was interrupted.
#include <gtest/gtest.h>

#include "integration/training.h"

namespace qalora::test {
namespace {

class Resume : public Training {};

int newest_step(const fs::path& run) {
  int newest = -1;
  for (const auto& entry : fs::directory_iterator(run / "checkpoints")) {
    newest = std::max(newest, std::stoi(entry.path().filename().string().substr(5)));
  }
  return newest;
}

TEST_F(Resume, ConstantScheduleMayBeProlonged) {
  const fs::path whole = folder("constant"), parts = folder("constant-parts"), other = folder("constant-other");
  const std::vector<std::string> always = {"--schedule", "constant", "--eval-examples", "6", "-q"};
  const auto with = [&](std::vector<std::string> more) {
    more.insert(more.begin(), always.begin(), always.end());
    return more;
  };
  expect_trained(whole, with({"--steps", "8", "--eval-interval", "3"}));
  expect_trained(parts, with({"--steps", "4", "--checkpoint-interval", "2"}));
  expect_trained(parts, with({"--steps", "8", "--eval-interval", "2", "--log-interval", "3", "--resume"}));
  expect_same_end(whole, parts, 8);
  expect_trained(other, with({"--steps", "8", "--seed", "43"}));
  EXPECT_NE(digest(whole / "adapter/adapter_model.safetensors"), digest(other / "adapter/adapter_model.safetensors"));
  // Another setting that decides the numbers is refused, and named.
  const Outcome changed = finetune(parts, with({"--steps", "9", "--resume", "--learning-rate", "0.5"}));
  EXPECT_EQ(changed.exit_code, 3);
  EXPECT_NE(changed.err.find("learning_rate=0.5"), std::string::npos) << changed.err;
}

TEST_F(Resume, FallingSchedulesGoOnWithTheSameSteps) {
  std::vector<std::string> ends;
  for (const std::string schedule : {"linear", "cosine"}) {
    const fs::path whole = folder(schedule), parts = folder(schedule + "-parts");
    const std::vector<std::string> more = {"--schedule",         schedule, "--steps", "8", "--checkpoint-interval", "4",
                                           "--keep-checkpoints", "0",      "-q"};
    expect_trained(whole, more);
    copy_as_killed(whole, parts, 4, 8);
    std::vector<std::string> again = more;
    again.push_back("--resume");
    std::vector<std::string> longer = again;
    longer[3] = "9";
    const Outcome refused = finetune(parts, longer);
    EXPECT_EQ(refused.exit_code, 3);
    EXPECT_NE(refused.err.find("steps=8, now it is steps=9 (the schedule falls"), std::string::npos) << refused.err;
    expect_trained(parts, again);
    expect_same_end(whole, parts, 8);
    ends.push_back(digest(whole / "adapter/adapter_model.safetensors"));
  }
  EXPECT_NE(ends[0], ends[1]);  // must differ: the schedules do something
}

TEST_F(Resume, SignalsSaveAndStop) {
  const std::vector<std::string> more = {"--steps", "60", "--checkpoint-interval", "0", "-q"};
  const fs::path whole = folder("unstopped");
  expect_trained(whole, more);
  for (const int number : {SIGTERM, SIGINT}) {
    const fs::path parts = folder("stopped-" + std::to_string(number));
    EXPECT_EQ(Background(words(parts, more)).stop_at(parts, 3, number), 128 + number);
    const int step = newest_step(parts);
    EXPECT_GE(step, 3);
    EXPECT_LT(step, 60);  // else nothing was interrupted
    EXPECT_FALSE(fs::exists(parts / "adapter"));
    std::vector<std::string> again = more;
    again.push_back("--resume");
    expect_trained(parts, again);
    expect_same_end(whole, parts, 60);
  }
}

TEST_F(Resume, AnErrorAmidTheStepsLosesNoneOfThem) {
  const std::string data = folder("changing.json"), sound = read_file(tune());
  const std::vector<std::string> more = {"--steps", "60", "--checkpoint-interval", "0", "--data", data, "-q"};
  write_file(data, sound);
  const fs::path whole = folder("error-whole"), parts = folder("error-parts"), touched = folder("touched");
  expect_trained(whole, more);
  EXPECT_EQ(Background(words(parts, more)).at(parts, 3, [&] { write_file(data, sound.substr(0, sound.size() / 2)); }),
            3);
  const int step = newest_step(parts);
  EXPECT_GE(step, 3);
  EXPECT_LT(step, 60);
  write_file(data, sound);
  std::vector<std::string> again = more;
  again.push_back("--resume");
  expect_trained(parts, again);
  expect_same_end(whole, parts, 60);
  // Touched and nothing else: the run goes on.
  const auto touch = [&] { fs::last_write_time(data, fs::last_write_time(data) + std::chrono::seconds(5)); };
  EXPECT_EQ(Background(words(touched, more)).at(touched, 3, touch), 0);
  expect_same_end(whole, touched, 60);
}

TEST_F(Resume, AnEvaluationThatASignalCutShortIsMadeUpFor) {
  const std::vector<std::string> more = {"--steps",
                                         "4",
                                         "--checkpoint-interval",
                                         "0",
                                         "--micro-batch-size",
                                         "1",
                                         "--eval-interval",
                                         "2",
                                         "--eval-examples",
                                         "300",
                                         "-q"};
  const fs::path whole = folder("evaluated"), parts = folder("evaluated-parts");
  expect_trained(whole, more);
  // 300 forward passes are under way when the second step's line is there.
  EXPECT_EQ(Background(words(parts, more)).stop_at(parts, 2, SIGTERM), 143);
  EXPECT_EQ(json::parse(read_file(parts / "checkpoints/step-2/state.json")).at("evaluation_due"), true);
  EXPECT_TRUE(metrics_of(parts, "eval").empty());
  std::vector<std::string> again = more;
  again.push_back("--resume");
  expect_trained(parts, again);
  expect_same_end(whole, parts, 4);
  EXPECT_EQ(metrics_of(whole, "eval"), metrics_of(parts, "eval"));
  EXPECT_EQ(metrics_of(whole, "eval").size(), 2u);
  EXPECT_EQ(digest(whole / "best/best.json"), digest(parts / "best/best.json"));
  EXPECT_EQ(digest(whole / "best/adapter_model.safetensors"), digest(parts / "best/adapter_model.safetensors"));
}

TEST_F(Resume, DamagedCheckpointsAreNamedAndPassedOver) {
  const std::vector<std::string> more = {"--steps", "6", "--checkpoint-interval", "2", "--keep-checkpoints", "0"};
  const fs::path whole = folder("sound");
  expect_trained(whole, more);
  std::vector<std::string> again = more;
  again.push_back("--resume");
  const std::pair<const char*, const char*> damages[] = {{"state.json", "cut"},
                                                         {"state.json", ""},
                                                         {"optimizer.safetensors", ""},
                                                         {"adapter_config.json", ""},
                                                         {"adapter_model.safetensors", "cut"}};
  for (const auto& [file, how] : damages) {
    const fs::path parts = folder(std::string("damaged-") + file + how), newest = parts / "checkpoints/step-4" / file;
    copy_as_killed(whole, parts, 4, 6);
    const std::string good = read_file(newest);
    fs::remove(newest);
    if (*how != 0) write_file(newest, good.substr(0, good.size() / 2));
    const Outcome run = finetune(parts, again);
    EXPECT_EQ(run.exit_code, 0) << run.err;
    EXPECT_NE(run.err.find("step-4 is damaged and left out"), std::string::npos) << file << "\n" << run.err;
    EXPECT_NE(run.err.find("resuming from " + (parts / "checkpoints/step-2").string()), std::string::npos) << run.err;
    expect_same_end(whole, parts, 6);
  }
}

TEST_F(Resume, WithoutAnyCheckpointNothingIsLost) {
  const fs::path run = folder("none");
  expect_trained(run, {"--steps", "2", "-q"});
  fs::remove(run / "checkpoints/step-2/state.json");
  const Outcome resumed = finetune(run, {"--steps", "2", "--resume"});
  EXPECT_EQ(resumed.exit_code, 2);
  EXPECT_NE(resumed.err.find("no complete checkpoint"), std::string::npos) << resumed.err;
  EXPECT_TRUE(fs::exists(run / "checkpoints/step-2/adapter_model.safetensors"));
  EXPECT_TRUE(fs::exists(run / "adapter/adapter_model.safetensors"));
}

TEST_F(Resume, AFullDiskSaysWhatIsSaved) {
  if (!fs::exists("/bin/bash")) GTEST_SKIP() << "no bash to set a file-size limit with";
  const fs::path run = folder("full-disk");
  // No file may grow beyond 100 KiB, which is the same error to the program as a full disk: no checkpoint does with
  // that.
  const auto limited = [&](const std::vector<std::string>& more) {
    std::string command = "ulimit -f 100; " QALORA_BINARY;
    for (const std::string& word : words(run, more)) command += " " + word;
    command += " 2> " + folder("full-disk-said").string() + " > " + folder("full-disk-out").string();
    EXPECT_EQ(WEXITSTATUS(std::system(("/bin/bash -c '" + command + "'").c_str())), 5);
    return read_file(folder("full-disk-said"));
  };
  const std::vector<std::string> two = {"--schedule", "constant", "--steps", "2"};
  const std::string first = limited(two);
  EXPECT_NE(first.find("no step is saved yet; start over with the same command"), std::string::npos) << first;
  EXPECT_NE(finetune(run, {"--steps", "2", "--resume"}).err.find("start over: leave --resume out\n"),
            std::string::npos);
  expect_trained(run, two);  // and so it does
  const std::string later = limited({"--schedule", "constant", "--steps", "4", "--resume"});
  EXPECT_NE(later.find("step 2 is saved, and the same command with --resume goes on from it"), std::string::npos)
      << later;
  expect_trained(run, {"--schedule", "constant", "--steps", "4", "--resume"});
}

TEST_F(Resume, AFinishedRunSaysSo) {
  const fs::path run = folder("finished");
  const std::vector<std::string> constant = {"--schedule", "constant", "--steps", "4", "-q"};
  expect_trained(run, constant);
  const std::string before = digest(run / "adapter/adapter_model.safetensors");
  std::vector<std::string> again = constant;
  again.push_back("--resume");
  const Outcome done = finetune(run, again);
  EXPECT_EQ(done.exit_code, 0) << done.err;
  EXPECT_EQ(done.out.rfind("nothing left to do at step 4\n", 0), 0u) << done.out;
  EXPECT_EQ(done.out.find("loss 0"), std::string::npos) << done.out;
  EXPECT_EQ(digest(run / "adapter/adapter_model.safetensors"), before);
  again[3] = "3";
  const Outcome fewer = finetune(run, again);
  EXPECT_EQ(fewer.exit_code, 2);
  EXPECT_NE(fewer.err.find("steps is 3, but the run stands at step 4"), std::string::npos) << fewer.err;
}

TEST_F(Resume, TheInitialAdapterBelongsToTheRun) {
  const fs::path first = folder("mean"), whole = folder("from-mean"), parts = folder("from-mean-parts");
  expect_trained(first, {"--steps", "2", "--pooling", "mean", "--rank", "4", "--alpha", "2", "-q"});
  const std::vector<std::string> more = {"--steps", "4", "--checkpoint-interval", "2", "-q"};
  std::vector<std::string> with = more;
  with.insert(with.end(), {"--initial-adapter", first.string()});
  expect_trained(whole, with);
  const json config = json::parse(read_file(whole / "checkpoints/step-2/adapter_config.json"));
  EXPECT_EQ(config.at("qalora").at("pooling"), "mean");
  EXPECT_EQ(config.at("r"), 4);
  copy_as_killed(whole, parts, 2, 4);
  std::vector<std::string> without = more;
  without.push_back("--resume");
  const Outcome refused = finetune(parts, without);
  EXPECT_EQ(refused.exit_code, 3);
  EXPECT_NE(refused.err.find("another initial_adapter"), std::string::npos) << refused.err;
  with.push_back("--resume");
  expect_trained(parts, with);
  expect_same_end(whole, parts, 4);
}

TEST_F(Resume, TheDtypeBelongsToTheRunAndItsConfiguration) {
  for (const std::string dtype : {"float32", "bfloat16"}) {
    const fs::path run = folder(dtype), again = folder(dtype + "-again");
    expect_trained(run, {"--steps", "2", "--dtype", dtype, "-q"});
    EXPECT_NE(read_file(run / "config.toml").find("dtype = \"" + dtype + "\""), std::string::npos);
    const Outcome repeat =
        run_qalora({"finetune", "--config", run / "config.toml", "--out", again, "--threads", "1", "-q"});
    EXPECT_EQ(repeat.exit_code, 0) << repeat.err;
    expect_same_end(run, again, 2);
  }
  const fs::path adapter = "adapter/adapter_model.safetensors";
  EXPECT_NE(digest(folder("float32") / adapter), digest(folder("bfloat16") / adapter));
  const Outcome refused = finetune(folder("float32"), {"--steps", "2", "--dtype", "bfloat16", "--resume"});
  EXPECT_EQ(refused.exit_code, 3);
  EXPECT_NE(refused.err.find("dtype=float32, now it is dtype=bfloat16"), std::string::npos) << refused.err;
}

TEST_F(Resume, AnotherNumberOfThreadsIsSaid) {
  const fs::path run = folder("threads");
  expect_trained(run, {"--schedule", "constant", "--steps", "2"});
  EXPECT_EQ(json::parse(read_file(run / "checkpoints/step-2/state.json")).at("threads"), 1);
  const auto resumed = [&](const std::string& threads) {
    std::vector<std::string> command = words(run, {"--schedule", "constant", "--steps", "2", "--resume"});
    *(std::find(command.begin(), command.end(), "--threads") + 1) = threads;
    const Outcome outcome = run_qalora(command);
    EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
    return outcome.err.find("used 1 threads, now 2") != std::string::npos;
  };
  EXPECT_TRUE(resumed("2"));
  EXPECT_FALSE(resumed("1"));
}

}  // namespace
}  // namespace qalora::test
