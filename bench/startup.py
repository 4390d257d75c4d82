"""From the start of a process to its first rollout on the embedded base, and factorising that base beside `torch.svd`.

The first is a new process that imports the package, loads the base, reads its factors from the cache, installs the adapter and
writes 128 answers; its bound is six seconds. The second takes turns in one process, without the cache; `torch.svd` is called matrix
by matrix in float32, as the released code calls it. The memory is what factorising holds at most beyond the factors themselves, and
its bound the largest matrix.
"""

import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from bench._measure import MIB, Row, peak, row, seconds, side_by_side
from svf_rl.base.load import Base, BaseConfig, load_base
from svf_rl.svf.factorize import factorize, find_targets, matrix
from svf_rl.types import Factors

BOUND, STARTS, ROUNDS, TARGETS = 6.0, 3, 5, "attention+mlp"
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


def run() -> Iterator[Row]:
    start()  # which fills the cache of factors
    first = statistics.median([seconds(start) for _ in range(STARTS)])
    yield row("process start to first rollout, and its bound", first, BOUND, "s", "≤ 1")
    base = load_base(BaseConfig())
    times = side_by_side(lambda: factors_of(base), lambda: released(base), ROUNDS, "factorising")
    yield row("factorising the base, beside torch.svd", *times, "s", "≤ 1")
    found: list[dict[str, Factors]] = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # one matrix at a time; with more threads up to four, and each takes as much
    most = peak(lambda: found.append(factors_of(base)))
    torch.set_num_threads(threads)
    kept = sum(t.nbytes for f in found[0].values() for t in f) / MIB
    largest = max(matrix(m).numel() * 4 for m in find_targets(base.model, TARGETS).values()) / MIB
    yield row("its memory beyond the factors on one thread, beside the largest matrix", most - kept, largest, "MiB", "≤ 1.3")


def start() -> None:
    subprocess.run([sys.executable, "-c", FIRST_ROLLOUT], cwd=Path(__file__).resolve().parent.parent, check=True)


def factors_of(base: Base) -> dict[str, Factors]:
    with tempfile.TemporaryDirectory() as empty:
        return factorize(base, TARGETS, cache=Path(empty))


def released(base: Base) -> None:
    for module in find_targets(base.model, TARGETS).values():
        torch.svd(matrix(module).float())
