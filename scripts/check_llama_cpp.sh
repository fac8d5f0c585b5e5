#!/usr/bin/env bash
# Does llama.cpp compute what qalora computes? Exports models to GGUF, runs them in llama.cpp (the wheel xllamacpp, in a venv of its own under
# .deps) and compares next-token log-probabilities, greedy choices, tokens and an adapter.
#   check_llama_cpp.sh [MODEL...]    without a model: small random ones of every kind, made on the spot
# Exit code 0: all agree; 1: something differs; 77: skipped, because the wheel cannot be installed or the program is not built.
# QALORA: another program than build/qalora. QALORA_CHECK_OFFLINE=1: do not try to install.
set -euo pipefail
cd "$(dirname "$0")/.."
program=${QALORA:-$PWD/build/qalora}
venv=$PWD/.deps/llama-cpp
[[ -x $program ]] || { echo "check_llama_cpp: skipped: $program is not built (scripts/build.sh)" >&2; exit 77; }
if ! "$venv/bin/python" -c 'import xllamacpp, numpy' 2>/dev/null; then
  [[ ${QALORA_CHECK_OFFLINE:-} != 1 ]] || { echo "check_llama_cpp: skipped: xllamacpp is not installed in $venv" >&2; exit 77; }
  echo "check_llama_cpp: installing xllamacpp into $venv" >&2
  if ! { python3 -m venv "$venv" && "$venv/bin/pip" install --quiet xllamacpp numpy; } >&2; then
    echo "check_llama_cpp: skipped: xllamacpp cannot be installed here" >&2
    exit 77
  fi
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
data=${QALORA_SHARED:-$PWD/../shared}/data/tokenizer
"$venv/bin/python" scripts/check_llama_cpp.py --program "$program" --work "$work" --tokenizer-data "$data" "$@" 2>"$work/log" ||
  { status=$?; tail -n 20 "$work/log" >&2; exit $status; }
