#!/usr/bin/env python3
"""The steps of scripts/gpu_check.sh.

    gpu_check.py [--build FOLDER] [--budget SECONDS] [--architectures 90] [--json FILE]

Each step ends as passed, failed, timed out or not run (with the reason), whatever the others did; only a build that failed leaves those
that need it not run. The JSON file holds them all with seconds and figures, and is written anew after each.
"""
import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree
from datetime import datetime, timezone
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACK = ROOT / ".gpu-pack"
TAIL = 3000  # characters of a failed command's output that are kept


class NotRun(Exception):
    pass


class Failed(Exception):
    pass


class Check:
    def __init__(self, args):
        self.args, self.build = args, Path(args.build).resolve()
        self.file = Path(args.json) if args.json else self.build / "gpu_check.json"
        self.start = time.monotonic()
        self.report = {"started": datetime.now(timezone.utc).isoformat(timespec="seconds"), "machine": {}, "steps": []}
        self.environment = dict(os.environ)
        if (PACK / "bin/ninja").exists():
            self.environment["PATH"] = f"{PACK / 'bin'}:{self.environment['PATH']}"

    def left(self):
        return self.args.budget - (time.monotonic() - self.start)

    def run(self, *words, limit):
        """-> (return code, output); NotRun where the program is missing, subprocess.TimeoutExpired past the limit."""
        limit = min(limit, self.left())
        if limit < 5:
            raise NotRun("the time for all steps is used up")
        try:
            child = subprocess.Popen([str(word) for word in words], cwd=ROOT, env=self.environment, stdin=subprocess.DEVNULL, text=True,
                                     stdout=subprocess.PIPE, stderr=subprocess.STDOUT, errors="replace", start_new_session=True)
        except FileNotFoundError:
            raise NotRun(f"{words[0]} is not here") from None
        try:
            output, _ = child.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)  # compilers too: a step that goes on in the background would disturb the next
            output, _ = child.communicate()
            raise subprocess.TimeoutExpired(words, limit, output) from None
        return child.returncode, output

    def must(self, *words, limit):
        code, output = self.run(*words, limit=limit)
        if code != 0:
            raise Failed(f"{Path(str(words[0])).name} ended with {code}: {output[-TAIL:]}")
        return output

    def step(self, name, work, needs=()):
        """Runs `work`, which returns the step's figures, after the steps in `needs` passed."""
        entry = {"name": name, "status": "passed"}
        begin = time.monotonic()
        states = {step["name"]: step["status"] for step in self.report["steps"]}
        try:
            missing = [need for need in needs if states.get(need) != "passed"]
            if missing:
                raise NotRun(f"'{missing[0]}' did not pass")
            entry["figures"] = work()
        except NotRun as reason:
            entry.update({"status": "not run", "reason": str(reason)})
        except subprocess.TimeoutExpired as reason:
            entry.update(status="timed out", reason=f"after {reason.timeout:.0f} s: {(reason.output or '')[-TAIL:]}")
        except Exception as reason:  # a step of ours that breaks must not stop the later ones
            entry.update(status="failed", reason=str(reason) if isinstance(reason, Failed) else f"{type(reason).__name__}: {reason}")
        entry["seconds"] = round(time.monotonic() - begin, 1)
        self.report["steps"].append(entry)
        reason = entry.get("reason", "")
        print(f"{entry['status']:>9}  {name}  {entry['seconds']} s" + (f"\n           {reason[-600:]}" if reason else ""), flush=True)
        self.save()

    def save(self):
        self.report["seconds"] = round(time.monotonic() - self.start, 1)
        self.report["passed"] = all(step["status"] == "passed" for step in self.report["steps"])
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.write_text(json.dumps(self.report, indent=1) + "\n")

    # ---- The steps ------------------------------------------------------------------------------------------------------------

    def machine(self):
        facts = self.report["machine"]
        facts["cores"] = os.cpu_count()
        for name, words in {"compiler": ("g++", "--version"), "cmake": ("cmake", "--version"), "nvcc": ("nvcc", "--version")}.items():
            try:
                output = self.must(*words, limit=30).strip().splitlines()
                facts[name] = next((line for line in output if "release" in line), output[0])
            except (NotRun, Failed) as reason:
                facts[name] = f"none: {reason}"
        query = "name,driver_version,compute_cap,memory.total"
        output = self.must("nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader", limit=60)
        name, driver, capability, memory = [field.strip() for field in output.splitlines()[0].split(",")]
        facts.update(gpu=name, driver=driver, architecture=int(capability.replace(".", "")), memory=memory)
        return {}

    def libtorch(self):
        given = os.environ.get("LIBTORCH")
        if given:
            return given
        packaged = sorted(ROOT.glob(".deps/venv/lib/python3*/site-packages/torch"))
        for python in (self.environment.get("QALORA_PYTHON", "python3"), "/usr/bin/python3"):
            code, output = self.run(python, "-c", "import importlib.util as u; print(u.find_spec('torch').submodule_search_locations[0])", limit=60)
            if code == 0:
                return output.strip().splitlines()[-1]
        if packaged:
            return str(packaged[0])
        raise NotRun("there is no LibTorch: python3 has no torch, and LIBTORCH is not set")

    def configure(self):
        libtorch = self.libtorch()
        self.report["machine"]["libtorch"] = libtorch
        architecture = self.args.architectures or self.report["machine"].get("architecture") or 90
        generator = ["-G", "Ninja"] if shutil.which("ninja", path=self.environment["PATH"]) else []
        prefix = [f"-DCMAKE_PREFIX_PATH={PACK / 'usr'}"] if PACK.exists() else []
        output = self.must("cmake", "-S", ROOT, "-B", self.build, *generator, *prefix, "-DCMAKE_BUILD_TYPE=Release", "-DQALORA_TESTS=ON",
                           f"-DLIBTORCH={libtorch}", "-DQALORA_CUDA=ON", f"-DQALORA_CUDA_ARCHITECTURES={architecture}", limit=90)
        said = re.search(r"^-- CUDA: (.*)$", output, re.M)
        if not said or said[1].startswith("not built"):
            raise Failed(said[1] if said else "CMake says nothing of CUDA")
        return {"cuda": said[1]}

    def compile(self):
        self.must("cmake", "--build", self.build, "--parallel", os.cpu_count() or 2, "--target", "gpu_programs", limit=max(300, 0.65 * self.args.budget))
        return {}

    def version(self):
        said = json.loads(self.must(self.build / "qalora", "--version", "--json", limit=60))
        if not said["cuda"] or not said["cuda"]["devices"]:
            raise Failed(f"the program does not see the GPU: {(said['cuda'] or {}).get('problem', 'CUDA is not built')}")
        return said

    def help_time(self):
        seconds = []
        for _ in range(10):
            begin = time.monotonic()
            self.must(self.build / "qalora", "--help", limit=20)
            seconds.append(time.monotonic() - begin)
        figures = {"least_seconds": round(min(seconds), 3), "median_seconds": round(sorted(seconds)[5], 3), "goal": 0.3}
        if figures["least_seconds"] > 0.3:  # the least: other work on the machine is not the program's
            raise Failed(f"qalora --help takes {figures['least_seconds']} s, 0.3 s is the goal")
        return figures

    def tests(self):
        results = self.build / "test-results"
        shutil.rmtree(results, ignore_errors=True)
        code, output = self.run("ctest", "--test-dir", self.build, "-L", "gpu", "--output-on-failure", "--no-tests=error", limit=180)
        ran, failed, skipped = 0, [], []
        for report in sorted(results.glob("*.xml")):
            for test in xml.etree.ElementTree.parse(report).iter("testcase"):
                name = f"{test.get('classname')}.{test.get('name')}"
                if test.get("result") == "skipped":
                    skipped.append(name)
                elif test.get("result") == "completed":
                    ran += 1
                    failed += [name] if test.find("failure") is not None else []
        if code != 0 or failed:
            raise Failed(f"{len(failed)} of {ran} tests failed: {', '.join(failed[:20])}\n{output[-TAIL:]}")
        if skipped or ran == 0:
            raise NotRun(f"{ran} tests passed, {len(skipped)} were skipped: {', '.join(skipped[:20])}")
        return {"tests": ran}

    def sanitizer(self, tool, excluded):
        program = self.build / "test_gpu_kernels"
        code, output = self.run("compute-sanitizer", "--tool", tool, "--error-exitcode", "9", program, "--gtest_brief=1",
                                f"--gtest_filter=-{excluded}", limit=110)
        if "Device not supported" in output or "Unable to find" in output:
            raise NotRun(f"compute-sanitizer does not work on this machine: {output.strip()[-300:]}")
        if code != 0:
            raise Failed(f"{tool} ended with {code}: {output[-TAIL:]}")
        passed = re.search(r"\[  PASSED  \] (\d+) test", output)
        if not passed or int(passed[1]) == 0 or "[  SKIPPED ]" in output:
            raise NotRun(f"no test ran under {tool}: {output[-300:]}")
        return {"tests": int(passed[1])}

    def kernels(self):
        file = self.build / "kernels.json"
        self.must(sys.executable, ROOT / "scripts/kernel_report.py", self.build, "--json", file, limit=60)
        return json.loads(file.read_text())

    def bench(self):
        output = self.must(self.build / "gpu_bench", "--json", limit=120)
        return json.loads(output.strip().splitlines()[-1])


    def models(self):
        """Whole models of random weights, a process each: its peak of memory is its own. What a card has no room for is not run."""
        program, results = self.build / "gpu_model_bench", []
        for name in self.must(program, limit=30).split():
            try:
                results.append(json.loads(self.must(program, name, limit=75).strip().splitlines()[-1]))
            except (Failed, NotRun, subprocess.TimeoutExpired) as error:
                results.append({"case": name, "not_run": str(error)[-300:]})
        if all("not_run" in result for result in results):
            raise Failed(f"no model ran: {results[0]['not_run']}")
        return results


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", default=str(ROOT / "build-gpu"))
    parser.add_argument("--budget", type=float, default=465, help="seconds for all steps")
    parser.add_argument("--architectures", help="instead of the GPU's own, for a trial without one")
    parser.add_argument("--json", help="default: gpu_check.json in the build folder")
    check = Check(parser.parse_args())
    long_checks = "*Large*:*LongRows*"  # a sanitizer makes them hundreds of times slower
    check.step("machine", check.machine)
    check.step("configure", check.configure)
    check.step("build", check.compile, ["configure"])
    check.step("version", check.version, ["build"])
    check.step("start", check.help_time, ["build"])
    check.step("kernel report", check.kernels, ["build"])
    check.step("tests", check.tests, ["build"])
    check.step("memcheck", lambda: check.sanitizer("memcheck", long_checks), ["version"])
    check.step("benchmark", check.bench, ["version"])
    check.step("racecheck", lambda: check.sanitizer("racecheck", long_checks), ["version"])
    check.step("models", check.models, ["version"])
    states = [step["status"] for step in check.report["steps"]]
    print(f"{states.count('passed')} of {len(states)} steps passed in {check.report['seconds']} s; {check.file}")
    return 1 if {"failed", "timed out"} & set(states) else 2 if "not run" in states else 0


if __name__ == "__main__":
    sys.exit(main())
