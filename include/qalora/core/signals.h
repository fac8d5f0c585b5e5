// SIGINT and SIGTERM ask for a clean stop: the handler only sets a flag, long loops look at it. A second SIGINT ends at once.
#pragma once

namespace qalora {

void install_stop_handlers();  // also ignores SIGPIPE and SIGXFSZ, so that they become write errors
int stop_signal();             // 0, or the number of the signal that asked to stop
void throw_if_stopped();       // throws Interrupted
void clear_stop_signal();      // for tests

}  // namespace qalora
