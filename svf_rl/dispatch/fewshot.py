"""A mixture of experts for a new task, found from a few of its questions.

    alpha* = argmax over alpha in [0, 1]^K of the share of right greedy answers to the shots under z = 1 + sum_k alpha_k (z_k - 1)

by the cross-entropy method (search.py), ties by the mean log-likelihood of the gold answers. The candidates of a round are rows of
one batch: all of them answer all shots at once. `per=matrix` gives every expert one weight for each matrix. Without labels,
`objective=entropy` looks for the mixture that is surest of its own answers.

Shots are questions of the training split. Where the search ended, the best it saw, every single expert, their uniform mixture and
the base are then compared on questions of the validation split. The test split is not touched here.

Source: Transformer-Squared, section 3.2 (few-shot adaptation).
Differs from the source (SakanaAI/self-adaptive-llms):
1. It mixes raw logits, so that one expert with weight 1 does not reproduce itself; here effective z are mixed.
2. The chosen mixture is compared with single experts on questions that the search has not seen; there the last mean is taken.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from svf_rl.base.load import Base
from svf_rl.dispatch.dispatcher import BASE, Fixed
from svf_rl.dispatch.population import Population, entropies, rewards, shots_of
from svf_rl.dispatch.search import cross_entropy
from svf_rl.errors import FaultyRun, UserError, check_at_least
from svf_rl.progress import Progress
from svf_rl.rollout.episodes import EnvConfig, Split, make_env, split_size
from svf_rl.rollout.sampler import Sampling
from svf_rl.svf.adapter import SVFAdapter
from svf_rl.types import Expert

UNIFORM = "uniform"


class Method(StrEnum):
    """search: the cross-entropy method.  best: the best single expert.  uniform: 1/K of each."""

    search = "search"
    best = "best"
    uniform = "uniform"


class Objective(StrEnum):
    """reward: right answers to the shots.  entropy: sureness of the own answers; needs no labels."""

    reward = "reward"
    entropy = "entropy"


class Per(StrEnum):
    """One weight for each expert, or for each expert and matrix."""

    expert = "expert"
    matrix = "matrix"


@dataclass(frozen=True)
class FewshotConfig:
    """How the mixture is found; configs/dispatch/fewshot.yaml."""

    name: str = "fewshot"
    method: Method = Method.search
    objective: Objective = Objective.reward
    per: Per = Per.expert
    shots: int = 10
    valid_size: int = 50
    population: int = 32
    elite: float = 0.2
    std: float = 0.5
    rounds: int = 20
    patience: int = 4
    normalise: bool = False
    rows: int = 320

    def __post_init__(self) -> None:
        check_at_least(1, self, "shots valid_size rounds patience rows", "dispatch.")
        if self.population < 4 or not 0 < self.elite <= 1 or not 0 < self.std < math.inf:
            raise UserError(f"dispatch.population must be at least 4, elite in (0, 1], std above 0; found {self}")


class Candidate(NamedTuple):
    """A mixture under its name, and its share of right answers on the validation split."""

    name: str
    weights: Float[Tensor, "experts *matrices"]
    valid: float


@dataclass(frozen=True)
class Composed:
    """The chosen candidate, all that were compared, best first, and the best fitness on the shots after each round."""

    chosen: Candidate
    compared: list[Candidate]
    history: list[list[float]]


def compose(
    base: Base,
    adapter: SVFAdapter,
    experts: Mapping[str, Expert],
    env: EnvConfig,
    config: FewshotConfig,
    seed: int,
    progress: Progress,
) -> Composed:
    """Find a mixture for an environment. UserError if it has fewer questions than asked for. The adapter is installed."""
    made = make_env(env)
    for split, wanted in ((Split.train, config.shots), (Split.valid, config.valid_size)):
        if (size := split_size(made, split, wanted)) < wanted:
            key = "shots" if split is Split.train else "valid_size"
            raise UserError(
                f"expected {wanted} questions of the split {split.value}, {env.id!r} has {size}; give dispatch.{key}={size}"
            )
    population = Population(base, adapter, list(experts.values()), made, Sampling(env.max_tokens, 0.0, config.rows))
    named, history = known_mixtures(list(experts)), list[list[float]]()
    if config.method is Method.search:
        found, history = search_mixtures(population, named, config, seed, progress)
        named = found | named
    if config.method is Method.uniform:
        named = {UNIFORM: named[UNIFORM]}
    compared = compare_on_valid(population, named, config)
    allowed = [c for c in compared if config.method is not Method.best or c.name in experts]
    return Composed(allowed[0], compared, history)


def known_mixtures(names: Sequence[str]) -> dict[str, Float[Tensor, "experts"]]:
    """Every single expert, their uniform mixture, and the base."""
    single = dict(zip(names, torch.eye(len(names)), strict=True))
    return {**single, UNIFORM: torch.full((len(names),), 1 / len(names)), BASE: torch.zeros(len(names))}


def search_mixtures(
    population: Population, known: Mapping[str, Tensor], config: FewshotConfig, seed: int, progress: Progress
) -> tuple[dict[str, Tensor], list[list[float]]]:
    """Where the search ended, and the best that it saw, on the shots."""
    many, matrices = len(population.experts), len(population.experts[0].z)
    shape = (many,) if config.per is Per.expert else (many, matrices)

    def spread(weights: Tensor) -> Tensor:
        return weights.view(many, *[1] * (len(shape) - 1)).expand(shape).flatten()

    def unpack(flat: Tensor) -> Tensor:
        return normalised(flat.view(-1, *shape), config.normalise)

    measure = entropies if config.objective is Objective.entropy else rewards
    shots = shots_of(population, config.shots)
    result = cross_entropy(
        lambda flat: measure(population, unpack(flat), shots),
        spread(known[UNIFORM]),
        starts=[spread(weights) for weights in known.values()],
        population=config.population, elite=config.elite, std=config.std, rounds=config.rounds, patience=config.patience,
        seed=seed, progress=progress,
    )  # fmt: skip
    return {"search mean": unpack(result.mean)[0], "search best": unpack(result.best)[0]}, result.history


def normalised(weights: Float[Tensor, "n experts *matrices"], on: bool) -> Float[Tensor, "n experts *matrices"]:
    """Weights that sum to 1 over the experts; all zeros stay."""
    return weights / weights.sum(1, keepdim=True).clamp(min=1e-9) if on else weights


def compare_on_valid(population: Population, named: Mapping[str, Tensor], config: FewshotConfig) -> list[Candidate]:
    """The mixtures by their share of right answers on the validation split, best first, then in the order given."""
    matrices = len(population.experts[0].z)
    full = [w if w.ndim == 2 or config.per is Per.expert else w[:, None].expand(-1, matrices) for w in named.values()]
    played = population.play(torch.stack(full), Split.valid, range(config.valid_size))
    lost = {i for own in played for i, e in enumerate(own) if e is None}
    if len(lost) == config.valid_size:
        raise FaultyRun("all validation answers were lost because the environment failed; the reasons are above")
    right = [[e.reward >= 1 for i, e in enumerate(own) if e and i not in lost] for own in played]
    scored = [Candidate(n, w, sum(r) / len(r)) for n, w, r in zip(named, full, right, strict=True)]
    return sorted(scored, key=lambda candidate: -candidate.valid)


def make_fewshot(
    base: Base,
    adapter: SVFAdapter,
    experts: Mapping[str, Expert],
    config: FewshotConfig,
    env: EnvConfig,
    seed: int,
    progress: Progress,
) -> Fixed:
    """A dispatcher that answers every prompt with the mixture found for the environment. The adapter is installed."""
    found = compose(base, adapter, experts, env, config, seed, progress)
    return Fixed(found.chosen.weights, f"{found.chosen.name}, for {env.name}")
