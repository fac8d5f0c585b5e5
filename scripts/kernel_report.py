#!/usr/bin/env python3
"""What each CUDA kernel of a build takes: registers, spills, shared memory, warps that fit, instructions.

    scripts/kernel_report.py [BUILD] [--json FILE] [--arch 90]

Reads what ptxas said while BUILD (default: build) was made (OBJECT.ptxas) and, where cuobjdump and nvdisasm are at hand, the machine
code. Exit 1 when a hot kernel spills or keeps anything in local memory: each such access goes to DRAM and back.
"""
import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Once a model or once a step, a thousandth of the time: slow code is allowed.
COLD_FILES = {"repack", "fold"}
# Warps a multiprocessor holds; each has 65,536 registers, handed out to a warp in blocks of 256.
MOST_WARPS = {80: 64, 86: 48, 89: 48, 90: 64, 100: 64, 103: 64, 120: 48}


def read_reports(build):
    """-> {(file, mangled kernel, architecture): figures}"""
    figures = {}
    for path in sorted(Path(build).glob("CMakeFiles/qalora_cuda_kernels.dir/**/*.ptxas")):
        file, key = path.name.split(".")[0], None
        if not (ROOT / f"kernels/cuda/{file}.cu").exists():
            continue  # built once, gone since
        for line in path.read_text().splitlines():
            if match := re.search(r"Compiling entry function '(\w+)' for 'sm_(\d+)a?'", line):
                key = (file, match[1], int(match[2]))
                figures[key] = {"stack": 0, "spills": 0, "registers": 0, "shared": 0}
            elif key is None:
                continue
            elif match := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
                # A function that is called and not inlined has a line of its own: the worst counts.
                figures[key]["stack"] = max(figures[key]["stack"], int(match[1]))
                figures[key]["spills"] = max(figures[key]["spills"], int(match[2]) + int(match[3]))
            elif match := re.search(r"Used (\d+) registers", line):
                figures[key]["registers"] = int(match[1])
                shared = re.search(r"(\d+) bytes smem", line)
                figures[key]["shared"] = int(shared[1]) if shared else 0
    return figures


def disassembler():
    """-> (cuobjdump, environment) or (None, why not); nvdisasm must lie beside it or on PATH."""
    folders = [Path(folder) for folder in os.environ.get("PATH", "").split(":")] + [Path("/usr/local/cuda/bin")]
    folders += sorted(ROOT.glob(".deps/venv/lib/python3*/site-packages/nvidia/cu1*/bin"))
    places = ":".join(map(str, folders))
    tools = [shutil.which(tool, path=places) for tool in ("cuobjdump", "nvdisasm")]
    if None in tools:
        return None, "cuobjdump or nvdisasm is not here (pip packages nvidia-cuda-cuobjdump, nvidia-cuda-nvdisasm)"
    return tools[0], dict(os.environ, PATH=places)


def count_instructions(build, architecture):
    """-> {mangled kernel: Counter of opcodes}, why there is none"""
    tool, environment = disassembler()
    if tool is None:
        return {}, environment
    counts, kernel = {}, None
    for path in sorted(Path(build).glob("CMakeFiles/qalora_cuda_kernels.dir/**/*.cu.o")):
        done = subprocess.run([tool, "-sass", "-arch", f"sm_{architecture}", str(path)], env=environment, capture_output=True, text=True)
        if done.returncode != 0 and "does not contain" not in done.stderr:
            return {}, f"{tool}: {(done.stderr or done.stdout).strip()[:200]}"
        for line in done.stdout.splitlines():
            if match := re.match(r"\s*Function : (\w+)", line):
                kernel = counts.setdefault(match[1], Counter())
            elif kernel is not None and (match := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)", line)):
                kernel[match[1]] += 1
    for kernel in counts.values():
        kernel.pop("NOP", None)  # filling up to a multiple of 128 bytes
    return counts, None


def readable(names):
    done = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True)
    result = {}
    for name, text in zip(names, done.stdout.splitlines()):
        text = re.sub(r"^(void|static) |qalora::kernels::cuda::|\(anonymous namespace\)::", "", text)
        text = re.sub(r"\((int|bool|long|qalora::kernels::\w+(::\w+)*|\w+(::\w+)*)\)(?=-?\d|true|false)", "", text)
        depth, end = 0, len(text)
        for i, letter in enumerate(text):  # cut before the parameters
            depth += (letter == "<") - (letter == ">")
            if letter == "(" and depth == 0:
                end = i
                break
        result[name] = text[:end].replace("__nv_bfloat16", "bf16").replace("__half", "fp16")
    return result


def warps(registers, architecture):
    each = -(-max(registers, 1) * 32 // 256) * 256
    return min(MOST_WARPS.get(architecture, 48), 65536 // each // 4 * 4)


def joined(values):
    return str(values[0]) if len(set(values)) == 1 else "/".join(map(str, values))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", nargs="?", default=str(ROOT / "build"))
    parser.add_argument("--json", type=Path, help="the same figures, for programs")
    parser.add_argument("--arch", type=int, help="whose machine code to count (default: the newest built)")
    args = parser.parse_args()
    figures = read_reports(args.build)
    if not figures:
        sys.exit(f"kernel_report: no kernels in {args.build}; is it a build with CUDA?")
    architectures = sorted({key[2] for key in figures})
    arch = args.arch or architectures[-1]
    counts, missing = count_instructions(args.build, arch)
    names = readable(sorted({key[1] for key in figures}))

    rows, faults = [], []
    for file, kernel in sorted({key[:2] for key in figures}, key=lambda key: (key[0], names[key[1]])):
        each = [figures[file, kernel, a] for a in architectures if (file, kernel, a) in figures]
        of = [a for a in architectures if (file, kernel, a) in figures]
        row = {"file": file, "kernel": names[kernel], "architectures": of, "hot": file not in COLD_FILES}
        for what in ("registers", "spills", "stack", "shared"):
            row[what] = [e[what] for e in each]
        row["warps"] = [warps(e["registers"], a) for e, a in zip(each, of)]
        opcodes = counts.get(kernel, Counter())
        row["instructions"] = sum(opcodes.values()) or None
        row["tensor_core_instructions"] = opcodes["HMMA"] if opcodes else None
        row["local_instructions"] = opcodes["LDL"] + opcodes["STL"] if opcodes else None
        rows.append(row)
        if row["hot"] and any(row["spills"] + row["stack"]):
            faults.append(f"{file}: {names[kernel]}: {joined(row['spills'])} bytes spilled, {joined(row['stack'])} bytes of stack")

    print(f"Kernels for {', '.join(f'sm_{a}' for a in architectures)} (a/b/..: where they differ, in this order); warps: that fit on a")
    print(f"multiprocessor by registers alone; instructions: of sm_{arch}, " + (f"not counted: {missing}" if missing else "HMMA among them"))
    print("\n| file | kernel | registers | spills, bytes | static shared | warps | instructions | HMMA |\n|---|---|---|---|---|---|---|---|")
    for row in rows:
        cells = [row["file"], row["kernel"].replace("|", "\\|"), joined(row["registers"]), joined(row["spills"]), joined(row["shared"]),
                 joined(row["warps"]), row["instructions"] or "", row["tensor_core_instructions"] or ""]
        print("| " + " | ".join(map(str, cells)) + " |")
    if args.json:
        args.json.write_text(json.dumps({"instructions_of": arch, "missing": missing, "kernels": rows, "faults": faults}) + "\n")
    for fault in faults:
        print(f"local memory in a hot kernel: {fault}", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
