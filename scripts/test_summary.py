#!/usr/bin/env python3
"""Counts the tests of all executables from GoogleTest's XML reports and lists the skipped ones with their reasons."""
import collections
import sys
import xml.etree.ElementTree
from pathlib import Path


def main():
    reports = sorted(Path(sys.argv[1]).glob("*.xml"))
    ran = failed = 0
    skipped = collections.Counter()
    for report in reports:
        for test in xml.etree.ElementTree.parse(report).iter("testcase"):
            if test.get("result") == "skipped":
                reason = test.find("skipped")
                text = "" if reason is None else (reason.get("message") or "").strip()
                skipped[text.splitlines()[-1] if text else "no reason given"] += 1
            elif test.get("result") == "completed":
                ran += 1
                failed += test.find("failure") is not None
    print(f"{ran} tests ran in {len(reports)} programs, {failed} failed, {sum(skipped.values())} skipped")
    for reason, count in skipped.most_common():
        print(f"  skipped {count}: {reason}")
    return 1 if failed or ran == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
