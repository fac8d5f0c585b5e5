#!/usr/bin/env python3
"""Prints the demo's closing table from the JSON answers that scripts/demo.sh kept, and checks that tuned and merged agree."""
import json
import sys
from pathlib import Path

NOTE = """exam: 4-letter questions in MMLU's format, 0-shot. open: 'Question: .. Answer:', the value with the largest log-likelihood of
four. 25 % is chance for both. What both hold out is the wording of their questions, not the facts: the facts stand in the
pre-training text and in the tuning set in other words. perplexity: on sentences whose wordings no training text has.
GPTQ: calibrated on the tuning set. tuned: the base in the line above, with its adapter beside it; merged: one quantised model.
same answers: questions of exam and open they answer alike."""


def read(path):
    return json.loads(path.read_text())


def predictions(work, name):
    return [json.loads(line)["prediction"] for kind in ("exam", "open") for line in (work / f"{name}.{kind}.jsonl").read_text().splitlines()]


def row(work, name, label):
    return [label, f"{100 * read(work / f'{name}.mmlu.json')['accuracy']['micro']:.1f}", f"{100 * read(work / f'{name}.open.json')['accuracy']:.1f}",
            f"{read(work / f'{name}.perplexity.json')['perplexity']:.3f}"]


def first_mended(work, questions):
    """The context of an open question that 2 bits got wrong and the merged model gets right."""
    answers = [[json.loads(line) for line in (work / f"{name}.open.jsonl").read_text().splitlines()] for name in ("int2", "int2-merged")]
    for line, before, after in zip(Path(questions).read_text().splitlines(), *answers, strict=True):
        question = json.loads(line)
        if before["prediction"] != question["answer"] == after["prediction"]:
            return question["context"]
    sys.exit("no open question was mended")


def main():
    work = Path(sys.argv[1])
    if sys.argv[2:3] == ["--question"]:
        print(first_mended(work, sys.argv[3]))
        return 0
    rows = [["model", "exam %", "open %", "perplexity", "same answers"], row(work, "dense", "fp16, dense") + [""]]
    disagreements = 0
    for bits in (4, 3, 2):
        tuned, merged = predictions(work, f"int{bits}-adapter"), predictions(work, f"int{bits}-merged")
        same = sum(a == b for a, b in zip(tuned, merged, strict=True))
        disagreements += len(tuned) - same
        if bits == 2:
            rows.append(row(work, "int2-rounded", "int2, rounded") + [""])
        rows.append(row(work, f"int{bits}", f"int{bits}, GPTQ" if bits == 2 else f"int{bits}, rounded") + [""])
        rows.append(row(work, f"int{bits}-adapter", f"int{bits}, tuned") + [""])
        rows.append(row(work, f"int{bits}-merged", f"int{bits}, merged") + [f"{same} of {len(tuned)}"])
    widths = [max(len(r[i]) for r in rows) for i in range(5)]
    for number, r in enumerate(rows):
        print("  ".join([r[0].ljust(widths[0])] + [cell.rjust(width) for cell, width in zip(r[1:], widths[1:])]).rstrip())
        if number == 0:
            print("  ".join("-" * width for width in widths))
    print("\n" + NOTE)
    return 1 if disagreements else 0


if __name__ == "__main__":
    sys.exit(main())
