#include "qalora/core/signals.h"

#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <string_view>

#include "qalora/core/error.h"
#include "qalora/core/log.h"

namespace qalora {

namespace {

std::atomic<int> stop_number = 0;
static_assert(std::atomic<int>::is_always_lock_free);  // else a signal's handler could wait for ever
bool on_terminal = false;

// Inside a signal, where log must not be called: it may hold its lock. On a terminal a progress line and "^C" may stand
// before it.
void say(std::string_view text) {
  if (log::level() == log::Level::kQuiet) return;
  const int before = errno;  // of the call that the signal interrupted
  [[maybe_unused]] ssize_t ignored = 0;
  if (on_terminal) ignored = ::write(STDERR_FILENO, "\n", 1);
  ignored = ::write(STDERR_FILENO, text.data(), text.size());
  errno = before;
}

// Runs inside a signal: nothing but the flag, write and _exit is allowed here.
void on_stop(int number) {
  int before = 0;
  if (stop_number.compare_exchange_strong(before, number)) {
    return say(number == SIGINT
                   ? "stopping, as soon as what can be continued is saved; Ctrl-C again stops at once and loses it\n"
                   : "stopping, as soon as what can be continued is saved\n");
  }
  if (number != SIGINT) return;
  say("stopped at once; what was not saved yet is lost\n");  // the person does not want to wait for the clean stop
  _exit(128 + SIGINT);
}

// The page of a mapped file is gone. Nothing can be cleaned up here: what was being written lies under its temporary
// name.
void on_lost_page(int) {
  constexpr char kText[] =
      "\nerror: an input file became shorter while it was read, or its disk failed; nothing was put in place\n";
  [[maybe_unused]] const ssize_t ignored = ::write(STDERR_FILENO, kText, sizeof kText - 1);
  _exit(static_cast<int>(ExitCode::kData));
}

void set_handler(int number, void (*handler)(int)) {
  struct sigaction action = {};
  action.sa_handler = handler;
  action.sa_flags = SA_RESTART;
  sigemptyset(&action.sa_mask);
  sigaction(number, &action, nullptr);
}

}  // namespace

void install_stop_handlers() {
  on_terminal = ::isatty(STDERR_FILENO) == 1;
  set_handler(SIGINT, on_stop);
  set_handler(SIGTERM, on_stop);
  struct sigaction before = {};
  sigaction(SIGHUP, nullptr, &before);
  if (before.sa_handler != SIG_IGN) set_handler(SIGHUP, on_stop);  // under nohup it stays ignored
  set_handler(SIGPIPE, SIG_IGN);
  set_handler(SIGXFSZ, SIG_IGN);
  set_handler(SIGBUS, on_lost_page);
}

int stop_signal() { return stop_number; }

void throw_if_stopped() {
  const int number = stop_number;
  if (number != 0) throw Interrupted(number);
}

void clear_stop_signal() { stop_number = 0; }

}  // namespace qalora
