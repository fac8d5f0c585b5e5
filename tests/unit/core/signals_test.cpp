#include "qalora/core/signals.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <functional>

#include "qalora/core/error.h"
#include "qalora/core/file.h"
#include "qalora/core/log.h"
#include "support/support.h"

namespace qalora {
namespace {

// Runs `action` in a child and returns its wait status.
int in_child(const std::function<void()>& action) {
  const pid_t child = ::fork();
  if (child == 0) {
    install_stop_handlers();
    action();
    ::_exit(0);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  return status;
}

void expect_exit(int status, int code) {
  ASSERT_TRUE(WIFEXITED(status)) << "killed by signal " << WTERMSIG(status);
  EXPECT_EQ(WEXITSTATUS(status), code);
}

TEST(Signals, OnlyRaiseTheFlag) {
  for (int number : {SIGINT, SIGTERM, SIGHUP}) {
    const int status = in_child([number] {
      std::signal(SIGHUP, SIG_DFL);  // the tests may run under nohup
      install_stop_handlers();
      if (stop_signal() != 0) ::_exit(90);
      try {
        throw_if_stopped();
      } catch (...) {
        ::_exit(91);
      }
      ::raise(number);
      if (stop_signal() != number) ::_exit(92);
      try {
        throw_if_stopped();
      } catch (const Interrupted& stop) {
        clear_stop_signal();
        ::_exit(stop_signal() == 0 ? static_cast<int>(stop.code()) : 93);
      }
    });
    expect_exit(status, 128 + number);
  }
}

TEST(Signals, SecondInterruptEndsAtOnce) {
  expect_exit(in_child([] { ::raise(SIGINT), ::raise(SIGINT); }), 130);
  expect_exit(in_child([] { ::raise(SIGTERM), ::raise(SIGTERM); }), 0);
  expect_exit(in_child([] { ::raise(SIGTERM), ::raise(SIGINT); }), 130);
}

// What the handlers write to stderr, here a file, while `action` runs.
std::string said(log::Level level, const std::function<void()>& action) {
  const test::TempDir dir;
  test::write_file(dir / "said", "");
  in_child([&] {
    ::close(STDERR_FILENO);
    if (::open((dir / "said").c_str(), O_WRONLY) != STDERR_FILENO) ::_exit(91);
    log::configure({.level = level, .color = log::Color::kNever, .file = {}});
    install_stop_handlers();
    action();
  });
  return test::read_file(dir / "said");
}

TEST(Signals, AreAnsweredAtOnceAndOnce) {
  const std::string first = "stopping, as soon as what can be continued is saved";
  const std::string interrupted = said(log::Level::kNormal, [] { ::raise(SIGINT); });
  EXPECT_EQ(interrupted, first + "; Ctrl-C again stops at once and loses it\n");
  EXPECT_EQ(said(log::Level::kNormal, [] { ::raise(SIGTERM), ::raise(SIGTERM), ::raise(SIGHUP); }), first + "\n");
  EXPECT_EQ(said(log::Level::kNormal, [] { ::raise(SIGINT), ::raise(SIGINT); }),
            interrupted + "stopped at once; what was not saved yet is lost\n");
  EXPECT_EQ(said(log::Level::kQuiet, [] { ::raise(SIGINT), ::raise(SIGINT); }), "");
}

TEST(Signals, NohupKeepsItsMeaning) {
  const int status = in_child([] {
    std::signal(SIGHUP, SIG_IGN);
    install_stop_handlers();
    ::raise(SIGHUP);
    ::_exit(stop_signal());
  });
  expect_exit(status, 0);
}

TEST(Signals, BrokenPipeBecomesAnError) {
  const int status = in_child([] {
    int ends[2];
    if (::pipe(ends) != 0) ::_exit(90);
    ::close(ends[0]);
    ::_exit(::write(ends[1], "x", 1) < 0 && errno == EPIPE ? 0 : 91);
  });
  expect_exit(status, 0);
}

TEST(Signals, AMappedFileThatShrinksIsASentence) {
  const test::TempDir dir;
  test::write_file(dir / "file", std::string(100000, 'x'));
  test::write_file(dir / "said", "");
  const int status = in_child([&] {
    const MappedFile file(dir / "file");
    if (::truncate((dir / "file").c_str(), 10) != 0) ::_exit(90);
    ::close(STDERR_FILENO);
    if (::open((dir / "said").c_str(), O_WRONLY) != STDERR_FILENO) ::_exit(91);
    const volatile std::byte* last = file.bytes().data() + 99999;
    [[maybe_unused]] const std::byte lost = *last;
  });
  expect_exit(status, 3);
  EXPECT_NE(test::read_file(dir / "said").find("became shorter"), std::string::npos);
}

}  // namespace
}  // namespace qalora
