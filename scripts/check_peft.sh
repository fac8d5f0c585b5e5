#!/usr/bin/env bash
# Exports a QA-LoRA adapter as an ordinary LoRA, runs it in PEFT beside a dense copy of its base and compares the logits with qalora's.
#   scripts/check_peft.sh [MODEL ADAPTER]     default: models/miniature in 3 bits, and an adapter trained for a few steps
# peft and torch (3 GB) are installed into .deps/peft from PyPI; PEFT_PYTHON names a Python that has them. Where they cannot be installed:
# SKIPPED, exit code 77.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PEFT_PYTHON:-.deps/peft/bin/python}
if [ -z "${PEFT_PYTHON:-}" ] && ! "$python" -c 'import peft' 2>/dev/null; then
  mkdir -p .deps
  if ! { python3 -m venv .deps/peft && .deps/peft/bin/pip install -q torch peft transformers numpy safetensors; } then
    echo "SKIPPED: peft could not be installed into .deps/peft; set PEFT_PYTHON to a Python that has it"
    exit 77
  fi
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
exec "$python" scripts/check_logits.py peft --qalora build/qalora --work "$work" "$@"
