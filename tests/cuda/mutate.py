#!/usr/bin/env python3
"""Writes a broken copy of a CUDA kernel file: one text replaced, and a line that makes it known to the tests as a mutant."""
import argparse
import re
import sys
from pathlib import Path


def api_functions(root, source):
    """The functions of the Api table that `source` defines."""
    header = (root / "include/qalora/kernels/cuda.h").read_text()
    fields = re.findall(r"\(\*(\w+)\)\(", header)
    return [field for field in fields if re.search(rf"^(?:Status|int64_t) {field}\(", source, re.MULTILINE)]


def any_layout(text):
    """Matches `text` however its lines are broken: at blanks and behind opening brackets."""
    words = [re.escape(word).replace(r"\(", r"\(\s*") for word in text.split()]
    return re.compile(("[ \t]+" if text[0].isspace() else "") + r"\s+".join(words) + (r"\s+" if text[-1].isspace() else ""))


def write(path, text):
    """Leaves a file alone that holds `text` already: what is made of it need not be made again. True when it did not."""
    if path.exists() and path.read_text() == text:
        return False
    path.write_text(text)
    return True


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("root", "folder"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    for name in ("source", "target", "id", "check", "dies"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--times", type=int, required=True)
    arguments = parser.parse_args()
    original = arguments.root / "kernels/cuda"
    copies = arguments.folder / "kernels/cuda"
    text = (arguments.folder / "text").read_text()
    replacement = (arguments.folder / "replacement").read_text()

    target = (original / arguments.target).read_text()
    pattern = any_layout(text)
    found = len(pattern.findall(target))
    if found != arguments.times:
        sys.exit(f"mutant {arguments.id}: {arguments.target} has its text {found} times, not {arguments.times}: {text!r}")
    if (text == replacement) != (arguments.id == "unmutated"):
        sys.exit(f"mutant {arguments.id}: what is replaced by itself is called unmutated")
    copies.mkdir(parents=True, exist_ok=True)
    source = (original / arguments.source).read_text()
    mutated = pattern.sub(lambda _: replacement, target)
    if arguments.target == arguments.source:
        source = mutated
    changed = False
    for header in original.glob("*.h"):  # beside the copy they are found before the originals
        changed |= write(copies / header.name, mutated if header.name == arguments.target else header.read_text())

    functions = api_functions(arguments.root, source)
    if not functions:
        sys.exit(f"mutant {arguments.id}: {arguments.source} defines no function of the Api table")
    changes = " ".join(f"api.{name} = qalora::kernels::cuda::{name};" for name in functions)
    dies = "true" if arguments.dies == "1" else "false"
    source += f"""
#include "cuda/mutant.h"
static const qalora::test::cuda::MutantEntry mutant_entry("{arguments.id}", "{arguments.check}", {dies},
                                                          [](qalora::kernels::cuda::Api& api) {{ {changes} }});
"""
    if not write(copies / arguments.source, source) and changed:
        (copies / arguments.source).touch()  # the build knows of no other output


if __name__ == "__main__":
    main()
