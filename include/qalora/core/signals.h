// SIGINT, SIGTERM and SIGHUP ask for a clean stop: the handler sets a flag, which long loops look at, and says so on
// stderr unless quiet. A SIGINT after that ends at once. Under nohup SIGHUP stays ignored. SIGBUS (a mapped file that
// shrank) ends with a sentence and exit code 3.
#pragma once

namespace qalora {

void install_stop_handlers();  // also ignores SIGPIPE and SIGXFSZ, so that they become write errors
int stop_signal();             // 0, or the number of the signal that asked to stop
void throw_if_stopped();       // throws Interrupted
void clear_stop_signal();      // for tests

}  // namespace qalora
