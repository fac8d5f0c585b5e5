#!/usr/bin/env bash
# Set-up, build, all tests. The last lines say how many ran, failed and were skipped, and why.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh
scripts/build.sh --tests
rm -rf build/test-results
status=0
PATH="$PWD/.deps/venv/bin:$PATH" ctest --test-dir build --output-on-failure --no-tests=error || status=$?
python3 scripts/test_summary.py build/test-results || status=1
exit $status
