"""Many mixtures in one batch beside one at a time, on the embedded base with random experts.

The row of the first pass gives its share of a whole answer; in the paper, dispatch by prompt takes 13 to 47 % of it.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch

from bench._measure import Row, row, side_by_side
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


def run() -> Iterator[Row]:
    """Every comparison of seconds."""
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
    one_after_another = partial(one_by_one, population, weights)
    yield compare(f"{MIXTURES} mixtures in one batch, against one merged expert", mixed, merged, "≥ 0.6")
    yield compare("the same, against switching merged experts row by row", mixed, switching)
    yield compare("16 candidates on 10 shots, against one after another", together, one_after_another, "≥ 5")
    yield compare("first pass of the probe, against the whole answer", partial(features, base, prompts), mixed)


def compare(name: str, ours: Callable[[], object], theirs: Callable[[], object], target: str = "") -> Row:
    return row(name, *side_by_side(ours, theirs, ROUNDS, name), "s", target)


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
    for alpha in weights:
        with using(population.adapter, mixture(population.experts, alpha)):
            for prompt in prompts:
                sample(population.base, [prompt], population.sampling, [0])
