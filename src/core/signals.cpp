#include "qalora/core/signals.h"

#include <signal.h>
#include <unistd.h>

#include "qalora/core/error.h"

namespace qalora {

namespace {

volatile sig_atomic_t stop_number = 0;

// Runs inside a signal: nothing but the flag and _exit is allowed here.
void on_stop(int number) {
  if (number == SIGINT && stop_number != 0) _exit(128 + SIGINT);  // the person does not want to wait for the clean stop
  stop_number = number;
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
