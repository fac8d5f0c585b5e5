#!/usr/bin/env bash
# Makes the miniature anew: world and data, pre-training with this project's own program, scores. About five minutes on one core.
#
#   scripts/miniature/train.sh      works in build/miniature
#
# Writes models/miniature (the checkpoint) and tests/data/miniature (exam, open questions, held-out text, tuning data).
# Needs build/qalora (scripts/build.sh) and the Python environment of scripts/setup.sh, to which it adds sentencepiece.
set -euo pipefail
cd "$(dirname "$0")/../.."
work=build/miniature
qalora=build/qalora
python=.deps/venv/bin/python
[ -x "$qalora" ] || { echo "train.sh: $qalora is missing: run scripts/build.sh first" >&2; exit 2; }
[ -x "$python" ] || { echo "train.sh: $python is missing: run scripts/setup.sh first" >&2; exit 2; }
"$python" -c 'import sentencepiece' 2>/dev/null || "$python" -m pip install --quiet --disable-pip-version-check sentencepiece==0.2.1

say() { printf '\n$ %s\n' "$*"; "$@"; }
# One thread and fp32: the same numbers on every run of one machine.
same=(--threads 1 --dtype float32)

say rm -rf "$work"
say "$python" scripts/miniature/make_world.py --out "$work"
say "$qalora" finetune --config scripts/miniature/pretrain.toml --model "$work/model" --data "$work/pretrain.jsonl" --out "$work/run" "${same[@]}" -q

data=tests/data/miniature
mkdir -p models/miniature $data
cp "$work"/run/model/* models/miniature/
cp -r "$work"/{mmlu,open.jsonl,open_val.jsonl,heldout.txt,tune.json,dialogues.jsonl} $data/

say "$qalora" eval --model models/miniature --task mmlu --data $data/mmlu --shots 0 "${same[@]}"
say "$qalora" eval --model models/miniature --task mmlu --data $data/mmlu --shots 5 "${same[@]}"
say "$qalora" eval --model models/miniature --task choice --data $data/open.jsonl "${same[@]}"
say "$qalora" eval --model models/miniature --task perplexity --data $data/heldout.txt "${same[@]}"
