#!/usr/bin/env bash
# Fuzzes the readers of files: libFuzzer with AddressSanitizer and UndefinedBehaviorSanitizer, in a build folder of its own (build-fuzz).
#   fuzz.sh TARGET|all [SECONDS]    TARGET: tests/fuzz/TARGET_fuzzer.cpp; SECONDS for each (default 60)
#   fuzz.sh list                    what targets there are
# Starts from tests/fuzz/seeds/TARGET and from what earlier runs found worth keeping (build-fuzz/corpus/TARGET). Inputs that fail are left in
# build-fuzz/findings, the log in build-fuzz/logs. Exit code 1 when there was a finding, 77 where there is no clang++ with libFuzzer.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
targets=$(cd tests/fuzz && ls -- *_fuzzer.cpp | sed 's/_fuzzer.cpp$//')
target=${1:-} seconds=${2:-60}
case $target in
  '') sed -n '2,6s/^# \{0,1\}//p' "$0"; exit 2 ;;
  list) echo "$targets"; exit 0 ;;
  all) ;;
  *) grep -qxF -- "$target" <<<"$targets" || { echo "fuzz.sh: no target '$target'; there are:" $targets >&2; exit 2; }; targets=$target ;;
esac

compiler=$(command -v clang++ || ls /usr/bin/clang++-* 2>/dev/null | sort -V | tail -n 1 || true)
works() {
  local folder; folder=$(mktemp -d)
  echo 'extern "C" int LLVMFuzzerTestOneInput(const unsigned char*, unsigned long) { return 0; }' > "$folder/try.cpp"
  "$1" -fsanitize=fuzzer,address,undefined "$folder/try.cpp" -o "$folder/try" 2>"$folder/log"
  local status=$?
  rm -rf "$folder"
  return $status
}
if [[ -z $compiler ]] || ! works "$compiler"; then
  echo "fuzz.sh: no clang++ with libFuzzer here; install the Debian packages clang and libclang-rt-dev (its number is clang's)" >&2
  exit 77
fi

PATH="$PWD/.deps/venv/bin:$PATH"
mkdir -p build-fuzz
cmake -S . -B build-fuzz -G Ninja -DCMAKE_CXX_COMPILER="$compiler" -DCMAKE_BUILD_TYPE=RelWithDebInfo -DQALORA_FUZZ=ON -DQALORA_TESTS=OFF \
  -DQALORA_CUDA=OFF >build-fuzz/configure.log 2>&1 || { cat build-fuzz/configure.log >&2; exit 1; }
# shellcheck disable=SC2046
cmake --build build-fuzz --target $(printf 'fuzz_%s ' $targets) >build-fuzz/build.log 2>&1 || { tail -n 60 build-fuzz/build.log >&2; exit 1; }

export ASAN_OPTIONS="detect_leaks=1:allocator_may_return_null=0${ASAN_OPTIONS:+:$ASAN_OPTIONS}" OMP_NUM_THREADS=1
mkdir -p build-fuzz/findings build-fuzz/logs
status=0
for name in $targets; do
  mkdir -p "build-fuzz/corpus/$name"
  seeds=(); [[ ! -d tests/fuzz/seeds/$name ]] || seeds=("$root/tests/fuzz/seeds/$name")
  dictionary=(); [[ ! -e tests/fuzz/$name.dict ]] || dictionary=("-dict=$root/tests/fuzz/$name.dict")
  echo "fuzz.sh: $name for $seconds s"
  # An input that needs 10 s or 2 GB is a finding too.
  if "build-fuzz/fuzz_$name" "build-fuzz/corpus/$name" "${seeds[@]}" "${dictionary[@]}" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 \
      -malloc_limit_mb=512 -max_len=65536 -artifact_prefix="build-fuzz/findings/$name-" -print_final_stats=1 >"build-fuzz/logs/$name.log" 2>&1; then
    grep -E 'stat::(number_of_executed_units|peak_rss_mb)' "build-fuzz/logs/$name.log" || true
  else
    status=1
    grep -E -m 3 'ERROR|SUMMARY|what\(\)' "build-fuzz/logs/$name.log" || tail -n 3 "build-fuzz/logs/$name.log"
    echo "fuzz.sh: $name: FINDING; see build-fuzz/logs/$name.log"
  fi
done
exit $status
