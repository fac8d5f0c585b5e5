#!/usr/bin/env bash
# Gathers into .gpu-pack/ (ignored by git, a few MB) the Debian headers and libraries and the ninja that a build needs, for a GPU machine
# that reaches no package registry. Take the source folder and .gpu-pack there and run scripts/gpu_check.sh.
set -euo pipefail
cd "$(dirname "$0")/.."
pack=.gpu-pack
fail() { echo "gpu_pack: $*" >&2; exit 1; }
[[ -e /usr/include/gtest/gtest.h && -e /usr/include/sentencepiece_processor.h ]] || fail "Debian packages are missing; run scripts/setup.sh first"
rm -rf "$pack"
mkdir -p "$pack/bin"
for package in nlohmann-json3-dev libcli11-dev libgtest-dev libsentencepiece-dev libsentencepiece0; do
  dpkg -L "$package" | while read -r path; do
    case $path in */doc/*|*/src/*|*_train*) continue ;; esac
    [[ -f $path || -L $path ]] || continue
    mkdir -p "$pack$(dirname "$path")"
    cp -P "$path" "$pack$path"
  done
done
ninja=$(ls -1 .deps/venv/lib/python3*/site-packages/ninja/data/bin/ninja .deps/venv/bin/ninja /usr/bin/ninja 2>/dev/null | while read -r path; do
  file=$(readlink -f "$path"); [[ $(head -c4 "$file" | tail -c3) == ELF ]] && { echo "$file"; break; }; done || true)
[[ -n $ninja ]] && cp "$ninja" "$pack/bin/ninja"
bytes=$(du -sb "$pack" | cut -f1)
((bytes < 30000000)) || fail "$pack holds $bytes bytes, 30 MB are the limit"
echo "$pack: $(du -sh "$pack" | cut -f1)"
