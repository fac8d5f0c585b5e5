#!/usr/bin/env python3
"""scripts/kernel_report.py on made-up words of ptxas: a spill in a hot kernel is an error, in a cold one and without one it is none."""
import subprocess
import sys
import tempfile
from pathlib import Path

REPORT = Path(__file__).resolve().parents[2] / "scripts/kernel_report.py"
WORDS = """ptxas info    : Compiling entry function '_Z6kernelPf' for 'sm_90'
ptxas info    : Function properties for _Z6kernelPf
    {stack} bytes stack frame, {spill} bytes spill stores, {spill} bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 128 bytes smem
"""


def report(file, stack, spill):
    with tempfile.TemporaryDirectory() as build:
        folder = Path(build) / "CMakeFiles/qalora_cuda_kernels.dir/kernels/cuda"
        folder.mkdir(parents=True)
        (folder / f"{file}.cu.o.ptxas").write_text(WORDS.format(stack=stack, spill=spill))
        return subprocess.run([sys.executable, str(REPORT), build], capture_output=True, text=True)


def main():
    clean = report("rope", 0, 0)
    assert clean.returncode == 0 and "| rope | kernel | 40 | 0 | 128 | 48 |" in clean.stdout, clean
    spills = report("rope", 8, 8)
    assert spills.returncode == 1 and "rope: kernel: 16 bytes spilled, 8 bytes of stack" in spills.stderr, spills
    assert report("rope", 400, 0).returncode == 1, "an array in local memory"
    assert report("repack", 8, 8).returncode == 0, "once a model"
    with tempfile.TemporaryDirectory() as empty:
        nothing = subprocess.run([sys.executable, str(REPORT), empty], capture_output=True, text=True)
        assert nothing.returncode == 1 and "no kernels in" in nothing.stderr, nothing
    print("5 reports as expected")


if __name__ == "__main__":
    main()
