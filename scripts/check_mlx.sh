#!/usr/bin/env bash
# Exports models as MLX folders, runs them in mlx-lm on the CPU and compares the logits with qalora's.
#   scripts/check_mlx.sh [MODEL..]     dense ones are quantised to 4, 3 and 2 bits first; default: models/miniature
# mlx-lm is installed into .deps/mlx from PyPI; MLX_PYTHON names a Python that has it. Where it cannot be installed: SKIPPED, exit code 77.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${MLX_PYTHON:-.deps/mlx/bin/python}
if [ -z "${MLX_PYTHON:-}" ] && ! "$python" -c 'import mlx_lm' 2>/dev/null; then
  mkdir -p .deps
  if ! { python3 -m venv .deps/mlx && .deps/mlx/bin/pip install -q 'mlx[cpu]' mlx-lm numpy; } then
    echo "SKIPPED: mlx-lm could not be installed into .deps/mlx; set MLX_PYTHON to a Python that has it"
    exit 77
  fi
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
exec "$python" scripts/check_logits.py mlx --qalora build/qalora --work "$work" "${@:-models/miniature}"
