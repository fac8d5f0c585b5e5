#!/usr/bin/env python3
"""Counts the tests of all executables from GoogleTest's JSON reports and lists the skipped ones with their reasons."""
import collections
import json
import sys
from pathlib import Path


def main():
    reports = sorted(Path(sys.argv[1]).glob("*.json"))
    ran = failed = 0
    skipped = collections.Counter()
    for report in reports:
        for suite in json.loads(report.read_text())["testsuites"]:
            for test in suite["testsuite"]:
                if test.get("result") == "SKIPPED":
                    reason = (test.get("skipped") or [{}])[0].get("message", "no reason given").strip().splitlines()[-1]
                    skipped[reason] += 1
                else:
                    ran += 1
                    failed += "failures" in test
    print(f"{ran} tests ran in {len(reports)} programs, {failed} failed, {sum(skipped.values())} skipped")
    for reason, count in skipped.most_common():
        print(f"  skipped {count}: {reason}")
    return 1 if failed or ran == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
