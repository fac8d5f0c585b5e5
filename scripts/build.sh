#!/usr/bin/env bash
# Builds the program into build/qalora and its CUDA plug-in beside it (and the tests with --tests).
#   build.sh [--tests] [--preset release|debug|sanitize]
#   QALORA_CUDA=OFF                        no plug-in
#   QALORA_CUDA_ARCHITECTURES='86;90'      compute capabilities, instead of 80;86;89;90
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
options=("-DQALORA_TESTS=$tests")
for name in LIBTORCH QALORA_CUDA QALORA_CUDA_ARCHITECTURES; do
  [[ -z ${!name:-} ]] || options+=("-D$name=${!name}")
done
cmake --preset "$preset" "${options[@]}" >.deps/configure.log 2>&1 || { cat .deps/configure.log >&2; exit 1; }
grep '^-- CUDA:' .deps/configure.log | cut -c4- >&2
cmake --build --preset "$preset"
