#!/usr/bin/env bash
# Formats the C++ and CUDA sources as .clang-format says; --check changes nothing and fails where something would change.
set -euo pipefail
cd "$(dirname "$0")/.."
[[ $# == 0 || ($# == 1 && $1 == --check) ]] || { echo "format.sh: unknown argument '$*' (--check)" >&2; exit 2; }
command -v clang-format >/dev/null || { echo "format.sh: needs clang-format 14 (Debian 12: apt install clang-format)" >&2; exit 1; }
git ls-files -z '*.h' '*.cpp' '*.cu' | xargs -0 clang-format ${1:+--dry-run --Werror} -i
