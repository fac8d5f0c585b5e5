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
