"""Graded programs per second: the sandbox at its strongest tier, beside bubblewrap and beside a bare fresh interpreter.

    python bench/sandbox.py                     # seven rounds of 200 programs each, two at once on every side
    python bench/sandbox.py --rounds 3 --programs 50

Every side runs the same programs on the same inputs and compares the same outputs. The sides take turns within a
round, so that other work on the machine slows all of them; the figures are medians over rounds, and the ratio is the
median of the rounds' own ratios. The two other sides are given what is easiest for them: no imports, no typed values,
one write and one read, and no protection against a program that lies about its own result.
"""

import argparse
import ast
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from envs.sandbox import Job, Sandbox, Test, Verdict

AT_ONCE = 2
SOURCES = (
    "def solve(n): return n * (n + 1) // 2",
    "def solve(n):\n  a, b = 0, 1\n  for _ in range(n): a, b = b, a + b\n  return a",
    "def solve(n): return sorted(str(n) + '3141')",
    "def solve(n): return [d for d in range(1, n + 1) if n % d == 0]",
)
INPUTS = ((3,), (10,), (60,))


def expected(source: str) -> list[object]:
    """The right outputs; these programs are ours."""
    namespace: dict[str, Callable[..., object]] = {}
    exec(source, namespace)
    return [namespace["solve"](*arguments) for arguments in INPUTS]


PROGRAMS = tuple((source, expected(source)) for source in SOURCES)


def fresh(prefix: list[str]) -> Callable[[int], int]:
    """Grade with a fresh interpreter per program, started behind a command prefix."""
    command = [*prefix, os.path.realpath(sys.executable), "-I", "-S", "-c"]

    def grade(index: int) -> bool:
        source, right = PROGRAMS[index % len(PROGRAMS)]
        script = f"{source}\nprint([solve(*a) for a in {INPUTS!r}])"
        done = subprocess.run([*command, script], capture_output=True, stdin=subprocess.DEVNULL, timeout=20, check=False)
        return done.returncode == 0 and bool(ast.literal_eval(done.stdout.decode()) == right)

    def run(count: int) -> int:
        with ThreadPoolExecutor(AT_ONCE) as threads:
            return sum(threads.map(grade, range(count)))

    return run


def sandboxed(sandbox: Sandbox) -> Callable[[int], int]:
    """Grade with the sandbox."""
    jobs = [
        Job(source, "solve", tuple(Test(a, expected=e) for a, e in zip(INPUTS, right, strict=True))) for source, right in PROGRAMS
    ]

    def run(count: int) -> int:
        reports = sandbox.run_many(jobs[index % len(jobs)] for index in range(count))
        return sum(report.verdict is Verdict.PASS for report in reports)

    return run


def bubblewrap() -> list[str] | None:
    """A usual command line: every namespace, the file system read-only, a session of its own."""
    program = shutil.which("bwrap")
    options = "--unshare-all --die-with-parent --new-session --ro-bind / / --proc /proc --dev /dev --tmpfs /tmp --clearenv"
    return [program, *options.split()] if program else None


def measure(sides: dict[str, Callable[[int], int]], rounds: int, programs: int) -> dict[str, list[float]]:
    """Graded programs per second, by side and round."""
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, run in sides.items():
            started = time.perf_counter()
            right = run(programs)
            rates[name].append(programs / (time.perf_counter() - started))
            if right != programs:
                raise SystemExit(f"{name}: {programs - right} of {programs} right programs were not graded right")
    return rates


def rates_of_all(rounds: int, programs: int) -> tuple[str, dict[str, list[float]]]:
    """The sandbox's name, and the rates of every side there is."""
    prefix = bubblewrap()
    with Sandbox(workers=AT_ONCE) as sandbox:
        ours = f"sandbox, {sandbox.tier}"
        sides = {ours: sandboxed(sandbox), "bare fresh interpreter": fresh([])}
        if prefix:
            sides["bubblewrap, fresh interpreter"] = fresh(prefix)
        else:
            print("bubblewrap is not installed (Debian: apt-get install bubblewrap); its side is left out")
        for warm_up in sides.values():
            warm_up(10)
        return ours, measure(sides, rounds, programs)


def run(rounds: int = 5, programs: int = 100) -> list[dict[str, Any]]:
    """Every comparison, as rows of name, ours, theirs, unit and ratio."""
    ours, rates = rates_of_all(rounds, programs)
    mine = rates.pop(ours)
    return [
        {
            "name": f"{ours}, beside {name}",
            "ours": statistics.median(mine),
            "theirs": statistics.median(theirs),
            "unit": "programs/s",
            "ratio": statistics.median(a / b for a, b in zip(mine, theirs, strict=True)),
        }
        for name, theirs in rates.items()
    ]


def main() -> None:
    """Parse the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--programs", type=int, default=200)
    arguments = parser.parse_args()
    ours, rates = rates_of_all(arguments.rounds, arguments.programs)
    print(f"graded programs per second, {AT_ONCE} at once, median (lowest-highest) of {arguments.rounds} rounds")
    for name, values in rates.items():
        ratio = statistics.median(mine / theirs for mine, theirs in zip(rates[ours], values, strict=True))
        middle = statistics.median(values)
        print(f"  {name:44} {middle:6.0f}/s ({min(values):.0f}-{max(values):.0f})   sandbox is {ratio:.2f} x")


if __name__ == "__main__":
    main()
