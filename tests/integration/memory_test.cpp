// What happens when there is not enough memory, and how much is needed.
#include <gtest/gtest.h>
#include <sys/resource.h>

#include "support/support.h"

namespace qalora {
namespace {

using namespace test;

// The program under a limit of its address space, which it inherits from this process.
Outcome run_limited(rlim_t bytes, const std::vector<std::string>& arguments) {
  rlimit before{};
  getrlimit(RLIMIT_AS, &before);
  const rlimit limited{bytes, before.rlim_max};
  setrlimit(RLIMIT_AS, &limited);
  const Outcome run = run_qalora(arguments);
  setrlimit(RLIMIT_AS, &before);
  return run;
}

// A failed allocation inside LibTorch must come back as an error: another library's variable of the same name once made it abort.
TEST(Memory, RunningOutOfItIsASentenceAndExitCode4) {
#ifdef __SANITIZE_ADDRESS__
  GTEST_SKIP() << "AddressSanitizer needs terabytes of address space";
#endif
  TempDir dir;
  const fs::path model = source_dir() / "models/miniature", data = source_dir() / "tests/data/miniature/tune.json";
  const Outcome run = run_limited(rlim_t{1600} << 20, {"finetune", "--model", model, "--method", "full", "--data", data, "--out", dir / "run", "--steps", "1",
                                                       "--batch-size", "2400", "--micro-batch-size", "2400", "--sequence-length", "256", "--threads", "1", "-q"});
  EXPECT_EQ(run.exit_code, 4) << run.err;
  EXPECT_NE(run.err.find("out of memory"), std::string::npos) << run.err;
  EXPECT_NE(run.err.find("micro_batch_size"), std::string::npos) << run.err;
  EXPECT_FALSE(fs::exists(dir / "run" / "model"));
}

}  // namespace
}  // namespace qalora
