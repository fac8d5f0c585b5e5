#!/usr/bin/env bash
# Gets what the build needs: Debian packages (with apt, when missing) and LibTorch, CMake and ninja (from PyPI, under .deps/); the CUDA
# compiler too where the system has none, and CUDA's libraries where there is a GPU. Idempotent: takes no time and no network when
# nothing is missing.
#   LIBTORCH=DIR     use the LibTorch in DIR (include/ and lib/) instead of downloading one; its CUDA libraries are its own affair
#   QALORA_CUDA=OFF  no CUDA compiler
#   QALORA_GPU=1|0   get CUDA's libraries, or not, whatever nvidia-smi says
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '%s\n' "setup: $*" >&2; }
fail() { say "$*"; exit 1; }

# What must be found on the machine, and the Debian package that brings it. ccache only makes rebuilding faster.
declare -A package_of=(
  [g++]=g++ [python3]=python3 [/usr/include/nlohmann/json.hpp]=nlohmann-json3-dev [/usr/include/CLI/CLI.hpp]=libcli11-dev
  [/usr/include/sentencepiece_processor.h]=libsentencepiece-dev [/usr/include/pcre2.h]=libpcre2-dev [/usr/include/utf8proc.h]=libutf8proc-dev
  [/usr/include/gtest/gtest.h]=libgtest-dev
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

# install STAMP WANTED LABEL PACKAGES..: pip into .deps/venv once; WANTED is written to .deps/STAMP when it is there.
install() {
  local stamp=.deps/$1 wanted=$2 label=$3; shift 3
  if [[ -f $stamp && $(cat "$stamp") == "$wanted" ]]; then return 0; fi
  mkdir -p .deps
  [[ -x .deps/venv/bin/pip ]] || python3 -m venv .deps/venv || fail "python3 -m venv failed; is the Debian package python3-venv there?"
  say "downloading into .deps/$label: $*"
  .deps/venv/bin/pip install --quiet --disable-pip-version-check --no-deps "$@" || return 1
  printf '%s' "$wanted" > "$stamp"
  say "done ($(du -sh .deps | cut -f1) under .deps/)"
}
packages_in() { grep -v '^#' "scripts/$1"; }
size_in() { grep -o 'About [0-9.]* [GM]B' "scripts/$1" | tail -n 1 | tr 'A' 'a'; }

packages=$(packages_in requirements.txt)
[[ -z ${LIBTORCH:-} ]] || packages=$(grep -vE '^(torch|nvidia)' <<<"$packages")
# shellcheck disable=SC2086
install installed "$(cat scripts/requirements.txt; echo "${LIBTORCH:-}")" "" $packages \
  || fail "pip could not download the packages above; is there a network? With a LibTorch of your own set LIBTORCH=DIR."

# The CUDA that LibTorch was built for: 13 for the one above. Empty for one without CUDA.
cuda_major() {
  if [[ -z ${LIBTORCH:-} ]]; then echo 13
  elif [[ -e $LIBTORCH/lib/libc10_cuda.so ]]; then grep -aom1 'libcudart\.so\.[0-9]*' "$LIBTORCH/lib/libc10_cuda.so" | grep -o '[0-9]*$'; fi
}
# Does this machine have an nvcc that fits? The same places in the same order as cmake/cuda.cmake, which also tries whether it compiles.
system_nvcc() {
  local nvcc release
  for nvcc in "${CUDACXX:-}" "$(command -v nvcc || true)" /usr/local/cuda/bin/nvcc; do
    [[ -n $nvcc && -x $nvcc ]] || continue
    release=$("$nvcc" --version 2>/dev/null | grep -o 'release [0-9.]*' | cut -d' ' -f2) || continue
    [[ ${release%%.*} == "$1" ]] && (( ${release%%.*} > 12 || ${release#*.} >= 8 )) && return 0
  done
  return 1
}
major=$(cuda_major)
cuda_packages() {
  if ! system_nvcc "$major"; then packages_in requirements-cuda.txt
  elif [[ ! -x $(command -v cuobjdump || echo /usr/local/cuda/bin/cuobjdump) ]]; then packages_in requirements-cuda.txt | grep -E 'cuobjdump|nvdisasm'; fi
}
if [[ ${QALORA_CUDA:-ON} != OFF && $major == 13 ]]; then
  packages=$(cuda_packages)
  compiler=$(grep -q nvcc <<<"$packages" && echo "the CUDA compiler, $(size_in requirements-cuda.txt)" || echo "the CUDA disassembler, about 6 MB")
  # shellcheck disable=SC2086
  [[ -z $packages ]] || install installed-cuda "$packages" " ($compiler)" $packages || say "$compiler: could not be downloaded; the build goes on without"
fi
has_gpu() {
  case ${QALORA_GPU:-} in 1) return 0 ;; 0) return 1 ;; esac
  [[ -e /dev/nvidiactl || -e /dev/dxg ]] && command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -q .
}
if [[ -z ${LIBTORCH:-} ]] && has_gpu; then
  # shellcheck disable=SC2046
  install installed-gpu "$(cat scripts/requirements-gpu.txt)" ", CUDA's libraries for the GPU here ($(size_in requirements-gpu.txt))" \
    $(packages_in requirements-gpu.txt) || say "CUDA's libraries could not be downloaded: --device cuda will say which one is missing"
fi
