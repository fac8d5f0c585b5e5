#!/usr/bin/env bash
# Makes the miniature anew: world and data, pre-training with this project's own program, scores.
#
#   scripts/miniature/train.sh [WORK]      WORK: folder for what is not kept (default build/miniature)
#
# Writes models/miniature (the checkpoint) and tests/data/miniature (exam, open questions, held-out text, tuning data).
# Needs build/qalora (scripts/build.sh) and the Python environment of scripts/setup.sh.
set -euo pipefail
cd "$(dirname "$0")/../.."
work=${1:-build/miniature}
qalora=${QALORA:-build/qalora}
python=${PYTHON:-.deps/venv/bin/python}
[ -x "$qalora" ] || { echo "train.sh: $qalora is missing: run scripts/build.sh first" >&2; exit 2; }
[ -x "$python" ] || { echo "train.sh: $python is missing: run scripts/setup.sh first" >&2; exit 2; }
# Spinning threads beside another busy process make a step many times slower.
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}

say() { printf '\n$ %s\n' "$*"; "$@"; }

say rm -rf "$work"
say "$python" scripts/miniature/make_world.py --out "$work"
say "$qalora" finetune --config scripts/miniature/pretrain.toml --model "$work/model" --data "$work/pretrain.jsonl" --out "$work/run" -q

mkdir -p models/miniature tests/data/miniature
cp "$work"/run/model/* models/miniature/
cp -r "$work"/{mmlu,open.jsonl,open_val.jsonl,heldout.txt,tune.json} tests/data/miniature/

data=tests/data/miniature
say "$qalora" eval --model models/miniature --task mmlu --data $data/mmlu --shots 0
say "$qalora" eval --model models/miniature --task mmlu --data $data/mmlu --shots 5
say "$qalora" eval --model models/miniature --task choice --data $data/open.jsonl
say "$qalora" eval --model models/miniature --task perplexity --data $data/heldout.txt
