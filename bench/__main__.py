"""All side-by-side measurements: `python -m bench` prints one table and writes bench/results.json.

`python -m bench rollout` runs one of them, or several; the rows of the others stay in the file. `python -m bench show` measures
nothing and prints the rows of the file that have a target, as Markdown. Each module beside this one has a `run` that gives rows
(see _measure.py). A peer that is not installed is said by name and its rows are left out; a part that
fails is reported and the others go on.
"""

import importlib
import importlib.metadata
import json
import os
import platform
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import svf_rl  # before torch: it says how OpenMP's threads wait

from bench._measure import Missing, Row, table  # isort: skip

HERE = Path(__file__).parent
PEERS = ("torch", "transformers", "peft", "trl", "accelerate", "datasets", "numpy")
MINUTES = {  # about, on two quiet cores; the order of the table
    "rollout": 7.0,
    "training": 2.5,
    "learner": 1.0,
    "serving": 0.5,
    "startup": 0.5,
    "shapes": 0.1,
    "roofline": 0.2,
    "growth": 2.0,
    "dispatch": 1.5,
    "attention": 0.5,
    "sandbox": 0.5,
}


def main(names: list[str]) -> int:
    """Run the parts of these names, or all there are; or show what was found."""
    if names == ["show"]:
        print(markdown())
        return 0
    unknown = [name for name in names if name not in MINUTES]
    if unknown:
        print(f"no measurement {', '.join(unknown)}; expected {', '.join(MINUTES)}, or show", file=sys.stderr)
        return 2
    chosen, rows, failed = names or list(MINUTES), [], []
    for i, name in enumerate(chosen):
        left = sum(MINUTES[other] for other in chosen[i:])
        say(f"{name}, part {i + 1} of {len(chosen)}: about {MINUTES[name]:.1f} minutes, {left:.0f} to the end")
        begun, found = time.perf_counter(), collect(name, failed)
        rows += found
        keep(name, found, time.perf_counter() - begun)
    print(heading(), table(rows), sep="\n")
    print(f"{len([r for r in rows if r.get('met')])} targets met, {len([r for r in rows if r.get('met') is False])} not met")
    if failed:
        say(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


def collect(name: str, failed: list[str]) -> list[Row]:
    """The rows of a part, those before a missing peer or a failure included."""
    rows: list[Row] = []
    try:
        module = importlib.import_module(f"bench.{name}")
        for row in module.run():
            rows.append(row)
            say(table([row]).splitlines()[1])
    except Missing as missing:
        say(str(missing))
    except Exception:  # the other parts are worth their minutes
        traceback.print_exc()
        failed.append(name)
    return rows


def markdown() -> str:
    """The rows of results.json that have a target."""
    lines = ["| what | ours | theirs | | ratio | target | |", "|---|---:|---:|---|---:|---:|---|"]
    for part in stored().values():
        for found in part["rows"]:
            if found.get("target"):
                figures = f"{found['ours']:.4g} | {found['theirs']:.4g} | {found['unit']} | {found['ratio']:.2f}"
                lines.append(f"| {found['name']} | {figures} | {found['target']} | {'met' if found['met'] else 'not met'} |")
    return "\n".join(lines)


def stored() -> dict[str, Any]:
    """The parts that were measured, by name."""
    path = HERE / "results.json"
    parts: dict[str, Any] = json.loads(path.read_text())["parts"] if path.exists() else {}
    return parts


def keep(name: str, rows: list[Row], seconds: float) -> None:
    """Write the part into results.json, beside what is there of other parts."""
    parts = stored()
    parts[name] = {"when": time.strftime("%Y-%m-%d %H:%M"), "seconds": round(seconds, 1), **machine(), "rows": rows}
    ordered = {part: parts[part] for part in MINUTES if part in parts}
    (HERE / "results.json").write_text(json.dumps({"parts": ordered}, indent=2, ensure_ascii=False) + "\n")


def machine() -> dict[str, Any]:
    """Where and with what, read again for every part: the load is that of its last minute."""
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    versions = {name: version(name) for name in PEERS}
    load = round(os.getloadavg()[0], 1)
    about = {"python": platform.python_version(), "svf-rl": svf_rl.__version__, **versions}
    return {"device": device, "threads": torch.get_num_threads(), "load": load, "versions": about}


def version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def heading() -> str:
    about = machine()
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    return f"{about['device']}, {about['threads']} threads, load {about['load']}; {versions}"


def say(text: str) -> None:
    """Progress goes to standard error, results to standard output."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
