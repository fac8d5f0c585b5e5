#!/usr/bin/env bash
# The whole road on a small LLaMA that is kept in models/miniature: set-up, build, then quantize to 4, 3 and 2 bits, finetune,
# merge, score before and after, generate. Prints every command it runs and a closing table. Output: build/demo.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh
scripts/build.sh
work=build/demo
data=tests/data/miniature
qalora=build/qalora
# So that the table is the same on every machine; by default the program takes bf16 where the processor is fast at it.
fp32="--dtype float32"

# Both print a command and run it; keep FILE COMMAND.. sends its standard output to FILE.
show() { printf '\n$ %s\n' "$*"; "$@"; }
keep() { local file=$1; shift; printf '\n$ %s > %s\n' "$*" "$file"; "$@" > "$file"; }

score() {  # score NAME MODEL [--adapter DIR]: exam, open questions and perplexity of one model
  local name=$1 model=$2; shift 2
  keep "$work/$name.mmlu.json" $qalora eval --model "$model" "$@" --task mmlu --data $data/mmlu --shots 0 --details "$work/$name.exam.jsonl" --json -q $fp32
  keep "$work/$name.open.json" $qalora eval --model "$model" "$@" --task choice --data $data/open.jsonl --details "$work/$name.open.jsonl" --json -q $fp32
  keep "$work/$name.perplexity.json" $qalora eval --model "$model" "$@" --task perplexity --data $data/heldout.txt --json -q $fp32
}

rm -rf "$work"
mkdir -p "$work"
score dense models/miniature
# At two bits rounding alone loses too much: GPTQ, calibrated on the tuning data, is what is tuned; the rounded model is scored beside it.
show $qalora quantize --model models/miniature --out $work/int2-rounded --bits 2 --group-size 32 -q
score int2-rounded $work/int2-rounded
for bits in 4 3 2; do
  base=$work/int$bits run=$work/run-int$bits merged=$work/int$bits-tuned how=
  if [ $bits = 2 ]; then how="--calibration $data/dialogues.jsonl --template none $fp32"; fi
  show $qalora quantize --model models/miniature --out "$base" --bits $bits --group-size 32 $how -q
  score "int$bits" "$base"
  show $qalora finetune --config configs/tiny/finetune.toml --model "$base" --data $data/dialogues.jsonl --out "$run" $fp32
  show $qalora merge --model "$base" --adapter "$run" --out "$merged" -q
  score "int$bits-adapter" "$base" --adapter "$run"
  score "int$bits-merged" "$merged"
done

printf '\nThe same question to the 2-bit model before and after:\n'
question=$(python3 scripts/demo_table.py "$work" --question $data/open.jsonl)
for model in "$work/int2" "$work/int2-tuned"; do
  show $qalora generate --model "$model" --template none --prompt "$question" --temperature 0 --max-tokens 4 -q $fp32
done

printf '\n'
python3 scripts/demo_table.py "$work"
