#include "qalora/cli/cli.h"

int main(int argc, char** argv) { return qalora::cli::run(argc, argv); }
