#!/usr/bin/env bash
# Gets what the build needs: Debian packages (with apt, when missing) and LibTorch, CMake and ninja (from PyPI, under .deps/).
# Idempotent: takes no time and no network when nothing is missing.
#   LIBTORCH=DIR   use the LibTorch in DIR (include/ and lib/) instead of downloading one
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '%s\n' "setup: $*" >&2; }
fail() { say "$*"; exit 1; }

# What must be found on the machine, and the Debian package that brings it. ccache only makes rebuilding faster.
declare -A package_of=(
  [g++]=g++ [python3]=python3 [/usr/include/nlohmann/json.hpp]=nlohmann-json3-dev [/usr/include/CLI/CLI.hpp]=libcli11-dev
  [/usr/include/sentencepiece_processor.h]=libsentencepiece-dev [/usr/include/gtest/gtest.h]=libgtest-dev
)
missing=()
for thing in "${!package_of[@]}"; do
  if [[ $thing == /* ]]; then [[ -e $thing ]] || missing+=("${package_of[$thing]}")
  else command -v "$thing" >/dev/null || missing+=("${package_of[$thing]}"); fi
done
if command -v python3 >/dev/null; then python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv); else missing+=(python3-venv); fi

install_packages() {
  local list="$*" run=()
  command -v apt-get >/dev/null || fail "these packages are missing and there is no apt-get here: $list. Install their like with your system's package manager and run this again."
  if [[ $(id -u) != 0 ]]; then
    command -v sudo >/dev/null || fail "these Debian packages are missing: $list. Ask an administrator to run: apt-get install $list"
    run=(sudo)
  fi
  say "installing Debian packages: $list"
  "${run[@]}" env DEBIAN_FRONTEND=noninteractive apt-get update -qq >/dev/null || say "apt-get update failed, trying with the lists at hand"
  "${run[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $list >/dev/null \
    || fail "apt-get could not install: $list. Run 'apt-get install $list' yourself to see why, then run this again."
}
if ((${#missing[@]})); then
  install_packages "${missing[@]}" "$(command -v ccache >/dev/null || echo ccache)"
fi

wanted=$(cat scripts/requirements.txt; echo "${LIBTORCH:-}")
stamp=.deps/installed
if [[ -f $stamp && $(cat "$stamp") == "$wanted" ]]; then exit 0; fi
mkdir -p .deps
[[ -x .deps/venv/bin/pip ]] || python3 -m venv .deps/venv || fail "python3 -m venv failed; is the Debian package python3-venv there?"
packages=$(grep -v '^#' scripts/requirements.txt)
[[ -z ${LIBTORCH:-} ]] || packages=$(grep -vE '^(torch|nvidia)' <<<"$packages")
say "downloading into .deps/: $(tr '\n' ' ' <<<"$packages")"
# shellcheck disable=SC2086
.deps/venv/bin/pip install --quiet --disable-pip-version-check --no-deps $packages \
  || fail "pip could not download the packages above; is there a network? With a LibTorch of your own set LIBTORCH=DIR."
printf '%s' "$wanted" > "$stamp"
say "done ($(du -sh .deps | cut -f1) under .deps/)"
