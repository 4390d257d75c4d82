"""Many mixtures in one batch beside one at a time, on the embedded base with random experts.

    python bench/dispatch.py

Both sides of every pair take turns, so that other work on the machine slows both; figures are medians over rounds.
"""

import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from svf_rl.base.load import Base, BaseConfig, load_base
from svf_rl.dispatch.dispatcher import mixture, using
from svf_rl.dispatch.population import Population
from svf_rl.dispatch.probe import features
from svf_rl.progress import Progress
from svf_rl.rollout.episodes import EnvConfig, make_env, prompts_of
from svf_rl.rollout.sampler import Sampling, sample
from svf_rl.svf.adapter import SVFAdapter, SVFConfig, make_svf
from svf_rl.types import Expert

ROUNDS, MIXTURES, ROWS, TOKENS = 3, 8, 32, 32


def run() -> list[dict[str, Any]]:
    """Name, our median, the other side's, unit, and the ratio of rates: above 1 is faster than the other side."""
    base = load_base(BaseConfig())
    adapter = make_svf(base, SVFConfig(), Progress(quiet=True))
    adapter.install()
    experts = [random_expert(adapter, seed) for seed in range(MIXTURES)]
    env = make_env(EnvConfig())
    prompts = [base.codec.prompt(p) for p in prompts_of(env, "test", range(ROWS))]
    sampling = Sampling(TOKENS, 1.0, ROWS)
    weights = torch.rand(16, len(experts), generator=torch.Generator().manual_seed(0)) / len(experts)
    population = Population(base, adapter, experts, env, Sampling(TOKENS, 0.0, 160))
    mixed = partial(decode_mixed, base, adapter, experts, prompts, sampling)
    merged = partial(decode_merged, base, adapter, experts[0], prompts, sampling)
    switching = partial(decode_switching, base, adapter, experts, prompts, sampling)
    together = partial(population.play, weights, "train", range(10))
    return [
        pair(f"{MIXTURES} mixtures in one batch, against one merged expert", mixed, merged),
        pair("the same, against switching merged experts row by row", mixed, switching),
        pair("16 candidates on 10 shots, against one after another", together, partial(one_by_one, population, weights)),
        pair("first pass of the probe, against the whole answer", partial(features, base, prompts), mixed),
    ]


def pair(name: str, ours: Callable[[], object], theirs: Callable[[], object]) -> dict[str, Any]:
    """Both sides in turn."""
    taken = [(seconds(ours), seconds(theirs)) for _ in range(ROUNDS + 1)][1:]
    mine, other = (statistics.median(side) for side in zip(*taken, strict=True))
    return {"name": name, "ours": mine, "theirs": other, "unit": "s", "ratio": other / mine}


def seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def random_expert(adapter: SVFAdapter, seed: int) -> Expert:
    stream = torch.Generator().manual_seed(seed)
    return Expert({name: 1 + 0.05 * torch.randn(s.shape, generator=stream) for name, s in adapter.spectra.items()})


def decode_mixed(base: Base, adapter: SVFAdapter, experts: list[Expert], prompts: list[list[int]], sampling: Sampling) -> None:
    with adapter.mixtures(experts) as choose:
        sample(base, prompts, sampling, range(len(prompts)), kinds=[i % len(experts) for i in range(len(prompts))], choose=choose)


def decode_merged(base: Base, adapter: SVFAdapter, expert: Expert, prompts: list[list[int]], sampling: Sampling) -> None:
    with using(adapter, expert):
        sample(base, prompts, sampling, range(len(prompts)))


def decode_switching(base: Base, adapter: SVFAdapter, experts: list[Expert], prompts: list[list[int]], sampling: Sampling) -> None:
    for i, prompt in enumerate(prompts):
        with using(adapter, experts[i % len(experts)]):
            sample(base, [prompt], sampling, [i])


def one_by_one(population: Population, weights: torch.Tensor) -> None:
    """As a loop over candidates does it: every candidate merged, its shots one after another."""
    prompts = [population.base.codec.prompt(p) for p in prompts_of(population.env, "train", range(10))]
    for row in weights:
        with using(population.adapter, mixture(population.experts, row)):
            for prompt in prompts:
                sample(population.base, [prompt], population.sampling, [0])


if __name__ == "__main__":
    for line in run():
        print(f"{line['name']:58} {line['ours']:7.2f} {line['unit']} {line['theirs']:7.2f} {line['unit']}   {line['ratio']:.2f} x")
