#!/usr/bin/env python3
"""Runs the CUDA compiler and keeps what ptxas says of each kernel (-Xptxas -v) in OBJECT.ptxas instead of on the screen.

    nvcc_launcher.py [ccache] nvcc ... -o OBJECT

Warnings and errors pass. The build calls this (cmake/cuda.cmake); scripts/kernel_report.py reads what it keeps.
"""
import subprocess
import sys


def is_report(line):
    return line.startswith("ptxas info") or "bytes stack frame" in line or line.startswith("    Function properties")


def main():
    command = sys.argv[1:]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    lines = done.stderr.splitlines(keepends=True)
    sys.stderr.write("".join(line for line in lines if not is_report(line)))
    if done.returncode == 0 and "-c" in command and "-o" in command:
        with open(command[command.index("-o") + 1] + ".ptxas", "w") as kept:
            kept.write("".join(line for line in lines if is_report(line)))
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
