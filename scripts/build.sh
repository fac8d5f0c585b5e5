#!/usr/bin/env bash
# Builds the program into build/qalora (and the tests with --tests).  build.sh [--tests] [--preset release|debug|sanitize]
set -euo pipefail
cd "$(dirname "$0")/.."
tests=OFF preset=release
while (($#)); do
  case $1 in
    --tests) tests=ON ;;
    --preset) preset=${2:?--preset needs a name}; shift ;;
    *) echo "build.sh: unknown argument '$1' (--tests, --preset NAME)" >&2; exit 2 ;;
  esac
  shift
done
# cmake and ninja of .deps first: Debian 12's are older than the CUDA compilers know.
PATH="$PWD/.deps/venv/bin:$PATH"
cmake --preset "$preset" -DQALORA_TESTS=$tests ${LIBTORCH:+-DLIBTORCH="$LIBTORCH"} >.deps/configure.log 2>&1 || { cat .deps/configure.log >&2; exit 1; }
cmake --build --preset "$preset"
