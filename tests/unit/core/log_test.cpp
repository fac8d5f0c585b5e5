#include "qalora/core/log.h"

#include <gtest/gtest.h>
#include <poll.h>
#include <pty.h>
#include <unistd.h>

#include <cstdlib>
#include <functional>

#include "qalora/core/error.h"
#include "support/support.h"

namespace qalora {
namespace {

using test::read_file;
using test::TempDir;

// Ends with the settings that it found.
class Log : public testing::Test {
 protected:
  void TearDown() override { log::configure({}); }

  static std::string printed(const std::function<void()>& action) {
    testing::internal::CaptureStderr();
    action();
    return testing::internal::GetCapturedStderr();
  }
};

void say_everything() {
  log::info("i");
  log::verbose("v");
  log::warn("w");
  log::error("e");
}

TEST_F(Log, Levels) {
  log::configure({.level = log::Level::kNormal, .color = log::Color::kNever, .file = {}});
  EXPECT_EQ(printed(say_everything), "i\nwarning: w\nerror: e\n");
  log::configure({.level = log::Level::kQuiet, .color = log::Color::kNever, .file = {}});
  EXPECT_EQ(printed(say_everything), "error: e\n");
  log::configure({.level = log::Level::kVerbose, .color = log::Color::kNever, .file = {}});
  EXPECT_EQ(printed(say_everything), "i\nv\nwarning: w\nerror: e\n");
  EXPECT_EQ(log::level(), log::Level::kVerbose);
}

TEST_F(Log, ColoursOnlyWhereTheyAreSeen) {
  const auto bold = [] { return log::bold("x") + log::red("y") + log::dim("z"); };
  log::configure({.level = log::Level::kNormal, .color = log::Color::kAlways, .file = {}});
  EXPECT_EQ(bold(), "\033[1mx\033[0m\033[31my\033[0m\033[2mz\033[0m");
  EXPECT_EQ(printed([] { log::error("e"); }), "\033[31merror: \033[0me\n");
  log::configure({.level = log::Level::kNormal, .color = log::Color::kAuto, .file = {}});
  testing::internal::CaptureStderr();  // a file, no terminal
  EXPECT_FALSE(log::is_terminal());
  EXPECT_EQ(bold(), "xyz");
  testing::internal::GetCapturedStderr();
}

// stderr becomes a pseudo terminal while this lives.
class Terminal {
 public:
  Terminal() {
    int slave = -1;
    struct winsize size = {24, 20, 0, 0};
    ok = ::openpty(&master_, &slave, nullptr, nullptr, &size) == 0;
    saved_ = ::dup(STDERR_FILENO);
    if (ok) ::dup2(slave, STDERR_FILENO), ::close(slave);
  }
  ~Terminal() {
    ::dup2(saved_, STDERR_FILENO);
    ::close(saved_);
    ::close(master_);
  }
  std::string seen() const {
    std::string text;
    char buffer[4096];
    struct pollfd ready = {master_, POLLIN, 0};
    while (::poll(&ready, 1, /*timeout_ms=*/200) > 0) {  // the kernel hands it over piece by piece
      const ssize_t count = ::read(master_, buffer, sizeof buffer);
      if (count <= 0) break;
      text.append(buffer, static_cast<size_t>(count));
    }
    return text;
  }
  bool ok = false;

 private:
  int master_ = -1, saved_ = -1;
};

TEST_F(Log, OnATerminal) {
  ::setenv("TERM", "xterm", 1);
  ::unsetenv("NO_COLOR");
  bool terminal = false, colored = false, no_color = true, dumb = true, forced = false;
  std::string shown, cut;
  {
    const Terminal screen;
    if (!screen.ok) GTEST_SKIP() << "no pseudo terminal here";
    log::configure({});
    terminal = log::is_terminal(), colored = log::colored();
    log::live_line("live");
    log::info("message");
    shown = screen.seen();
    log::live_line("äöü 4567890123456789 and more");  // the screen has 20 columns
    cut = screen.seen();
    log::live_line("");
    ::setenv("NO_COLOR", "1", 1);
    no_color = log::colored();
    log::configure({.level = log::Level::kNormal, .color = log::Color::kAlways, .file = {}});
    forced = log::colored();
    ::unsetenv("NO_COLOR");
    log::configure({});
    ::setenv("TERM", "dumb", 1);
    dumb = log::is_terminal() || log::colored();
  }
  EXPECT_TRUE(terminal && colored);
  EXPECT_FALSE(no_color) << "NO_COLOR switches them off";
  EXPECT_TRUE(forced) << "--color always wins over NO_COLOR";
  EXPECT_FALSE(dumb);
  EXPECT_EQ(shown, "live\r\033[Kmessage\r\n") << "the message takes the live line's place";
  EXPECT_EQ(cut, "äöü 456789012345") << "19 bytes, not inside a character";
}

TEST_F(Log, FileGetsACopyOfEverything) {
  const TempDir dir;
  log::configure({.level = log::Level::kQuiet, .color = log::Color::kAlways, .file = dir / "log"});
  EXPECT_EQ(printed([] { log::info("first"), log::warn("second"); }), "");
  const std::string text = read_file(dir / "log");
  EXPECT_NE(text.find("  first\n"), std::string::npos) << text;
  EXPECT_NE(text.find("  warning: second\n"), std::string::npos) << text;
  EXPECT_EQ(text.find('\033'), std::string::npos) << "no colours in the file";
  log::configure({});
  printed([] { log::info("third"); });
  EXPECT_EQ(read_file(dir / "log"), text) << "the file is closed when the next configuration has none";
}

TEST_F(Log, FileThatCannotBeOpened) {
  const TempDir dir;
  try {
    log::configure({.level = log::Level::kNormal, .color = log::Color::kAuto, .file = dir / "no" / "log"});
    FAIL() << "did not throw";
  } catch (const IoError& error) {
    EXPECT_NE(std::string(error.what()).find((dir / "no" / "log").string()), std::string::npos) << error.what();
  }
}

TEST_F(Log, WhatNamesHoldCannotCommandTheTerminal) {
  EXPECT_EQ(printed([] { log::error("tensor 'a\033[2Jb\rc\x7f'"); }), "error: tensor 'a\\x1b[2Jb\\x0dc\\x7f'\n");
  EXPECT_EQ(printed([] {
              log::error(
                  "a\xc2\x9b"
                  "2Jb");
            }),
            "error: a\\x9b2Jb\n");
  EXPECT_EQ(printed([] { log::error("one\nerror: two"); }), "error: one\n  error: two\n");
  EXPECT_EQ(printed([] { log::error("\xc3\xa4 \xe2\x82\xac\t"); }), "error: \xc3\xa4 \xe2\x82\xac\t\n");
}

TEST_F(Log, FarTooLongMessagesLoseTheirMiddle) {
  const std::string said = printed([] { log::error("begin" + std::string(600000, 'x') + "end"); });
  EXPECT_LT(said.size(), 4000u);
  EXPECT_EQ(said.rfind("error: begin", 0), 0u);
  EXPECT_NE(said.find("596508 bytes left out"), std::string::npos) << said;
  EXPECT_EQ(said.substr(said.size() - 4), "end\n");
  const std::string most(3900, 'x');
  EXPECT_EQ(printed([&] { log::error(most); }), "error: " + most + "\n");
}

}  // namespace
}  // namespace qalora
