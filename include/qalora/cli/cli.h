// The command line: parsing, running one command, and the only place where errors are caught.
#pragma once

namespace qalora::cli {

int run(int argc, char** argv);  // -> exit code

}  // namespace qalora::cli
