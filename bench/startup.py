"""From the start of a process to its first rollout on the embedded base, and factorising that base beside `torch.svd`.

    python bench/startup.py

The first is a new process that imports the package, loads the base, reads its factors from the cache, installs the adapter and
writes 128 answers; its bound is six seconds. The second takes turns in one process, without the cache; `torch.svd` is called matrix
by matrix in float32, as the released code calls it.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from svf_rl.base.load import Base, BaseConfig, load_base
from svf_rl.svf.factorize import factorize, find_targets, matrix

BOUND, REPEATS = 6.0, 5
FIRST_ROLLOUT = """
from svf_rl.base.load import BaseConfig, load_base
from svf_rl.progress import Progress
from svf_rl.rollout.episodes import EnvConfig, make_env, play
from svf_rl.rollout.sampler import Sampling
from svf_rl.svf.adapter import SVFConfig, make_svf

base = load_base(BaseConfig())
make_svf(base, SVFConfig(), Progress(quiet=True)).install()
play(base, make_env(EnvConfig()), "train", range(128), Sampling(64), range(128))
"""


def run() -> list[dict[str, Any]]:
    """The first row's other side is the bound; ratios above 1 are better."""
    base = load_base(BaseConfig())
    first = statistics.median([start() for _ in range(REPEATS)])
    taken = [(seconds(ours, base), seconds(theirs, base)) for _ in range(REPEATS + 1)][1:]
    mine, other = (statistics.median(side) for side in zip(*taken, strict=True))
    return [
        {
            "name": "process start to first rollout, and its bound",
            "ours": first,
            "theirs": BOUND,
            "unit": "s",
            "ratio": BOUND / first,
        },
        {"name": "factorising the base, beside torch.svd", "ours": mine, "theirs": other, "unit": "s", "ratio": other / mine},
    ]


def row(name: str, ours: float, theirs: float) -> dict[str, Any]:
    return {"name": name, "ours": ours, "theirs": theirs, "unit": "s", "ratio": theirs / ours}


def start() -> float:
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", FIRST_ROLLOUT], cwd=Path(__file__).resolve().parent.parent, check=True)
    return time.perf_counter() - begun


def seconds(work: Any, base: Base) -> float:
    begun = time.perf_counter()
    work(base)
    return time.perf_counter() - begun


def ours(base: Base) -> None:
    with tempfile.TemporaryDirectory() as empty:
        factorize(base, "attention+mlp", cache=Path(empty))


def theirs(base: Base) -> None:
    for module in find_targets(base.model, "attention+mlp").values():
        torch.svd(matrix(module).float())


if __name__ == "__main__":
    for line in run():
        print(f"{line['name']:58} {line['ours']:8.2f} {line['theirs']:8.2f} {line['unit']}   {line['ratio']:.2f} x")
