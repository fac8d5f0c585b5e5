#!/usr/bin/env python3
"""Checks that every file includes only its own room and rooms below it, and that core, kernels and CLI11 stay where they belong."""
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Which rooms a room may look at besides itself; what those may look at is allowed too.
BELOW = {
    "core": [], "kernels": [], "tensor": ["core", "kernels"], "io": ["tensor"], "text": ["io"], "quant": ["io", "kernels"], "cuda": ["tensor"],
    "model": ["quant", "text"], "export": ["model"], "train": ["model"], "eval": ["model"], "generate": ["model"],
    "cli": ["train", "eval", "generate", "export"],
}


def allowed(room):
    seen, todo = {room}, [room]
    while todo:
        for below in BELOW[todo.pop()]:
            if below not in seen:
                seen.add(below)
                todo.append(below)
    return seen


def room_of(path):
    parts = path.relative_to(ROOT).parts
    if parts[0] == "kernels":
        return "kernels"
    index = {"include": 2, "src": 1}.get(parts[0])
    return parts[index] if index is not None and len(parts) > index + 1 else None


def main():
    faults, files = [], 0
    for folder in ("include", "src", "kernels"):
        for path in sorted((ROOT / folder).rglob("*")):
            room = room_of(path)
            if path.suffix not in (".h", ".cpp", ".cu", ".cuh") or room is None:
                continue
            files += 1
            if room not in BELOW:
                faults.append(f"{path.relative_to(ROOT)}: room '{room}' is not known")
                continue
            may = allowed(room)
            for number, line in enumerate(path.read_text().splitlines(), 1):
                match = re.match(r'\s*#\s*include\s*[<"]([^>"]+)[>"]', line)
                if not match:
                    continue
                target, where = match.group(1), f"{path.relative_to(ROOT)}:{number}"
                if target.startswith("qalora/") and target.split("/")[1] not in may:
                    faults.append(f"{where}: {room} may not include {target}")
                if room in ("core", "kernels") and re.match(r"(ATen|c10|torch)/", target):
                    faults.append(f"{where}: {room} may not know LibTorch ({target})")
                if target.startswith("CLI/") and room != "cli":
                    faults.append(f"{where}: only cli knows CLI11")
                if target == "torch/torch.h":
                    faults.append(f"{where}: torch/torch.h is never included, it costs half a minute a file")
    if files == 0:
        faults.append("no source files found")
    print("\n".join(faults) or f"{files} files, every include looks down")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
