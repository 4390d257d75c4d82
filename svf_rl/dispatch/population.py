"""Many mixtures of experts at once: a population as the rows of one batch, and what makes one mixture fitter than another."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from svf_rl.base.load import Base
from svf_rl.dispatch.dispatcher import mixture
from svf_rl.dispatch.likelihood import Likelihood, answer_scores
from svf_rl.errors import FaultyRun
from svf_rl.rollout.episodes import Split, answer_ids, play
from svf_rl.rollout.sampler import Sampling
from svf_rl.svf.adapter import SVFAdapter
from svf_rl.types import Episode, Expert


@dataclass(frozen=True)
class Population:
    """Mixtures of experts as rows of one batch, on the questions of an environment. The adapter is installed."""

    base: Base
    adapter: SVFAdapter
    experts: Sequence[Expert]
    env: Any
    sampling: Sampling

    def play(self, weights: Float[Tensor, "n experts *matrices"], split: str, indices: Sequence[int]) -> list[list[Episode | None]]:
        """For each mixture, its greedy answers to the questions."""
        with self.adapter.mixtures([mixture(self.experts, row) for row in weights]) as choose:
            kinds = [k for k in range(len(weights)) for _ in indices]
            rows = list(indices) * len(weights)
            episodes = play(self.base, self.env, split, rows, self.sampling, [0] * len(rows), kinds=kinds, choose=choose)
        return [episodes[i : i + len(indices)] for i in range(0, len(episodes), len(indices))]

    def likelihood(self, weights: Tensor, prompts: Sequence[list[int]], answers: Sequence[Sequence[list[int]]]) -> Likelihood:
        """For each mixture, the mean over prompts of the likelihood of its answers; answers[k][i] is mixture k's to prompt i."""
        with self.adapter.mixtures([mixture(self.experts, row) for row in weights]) as choose:
            kinds = torch.arange(len(weights)).repeat_interleave(len(prompts))
            given = [answer for own in answers for answer in own]
            found = answer_scores(self.base, list(prompts) * len(weights), given, kinds, choose)
        return Likelihood(*(one.view(len(weights), -1).mean(1) for one in found))


def shots_of(population: Population, count: int) -> list[Episode]:
    """The first questions of the training split, answered by the base: their prompts, and gold answers where there are any."""
    (episodes,) = population.play(torch.zeros(1, len(population.experts)), Split.train, range(count))
    if None in episodes:
        raise FaultyRun(f"{episodes.count(None)} of {count} shots were lost because the environment failed; the reasons are above")
    return [e for e in episodes if e is not None]


def rewards(population: Population, weights: Tensor, shots: Sequence[Episode]) -> Float[Tensor, "n keys"]:
    """For each mixture the mean reward on the shots, then the likelihood of their gold answers (0 where there are none)."""
    episodes = population.play(weights, Split.train, range(len(shots)))
    earned = torch.tensor([sum(e.reward for e in own if e) / len(shots) for own in episodes])
    golden = [e for e in shots if e.info.get("gold")]
    if not golden:
        return torch.stack([earned, torch.zeros_like(earned)], -1)
    gold = [answer_ids(population.base, str(e.info["gold"])) for e in golden]
    likely = population.likelihood(weights, [prompt_ids(e) for e in golden], [gold] * len(weights))
    return torch.stack([earned, likely.logp], -1)


def entropies(population: Population, weights: Tensor, shots: Sequence[Episode]) -> Float[Tensor, "n keys"]:
    """For each mixture the negated entropy of its predictions along its own greedy answers."""
    episodes = population.play(weights, Split.train, range(len(shots)))
    answers = [[written(population.base, e) for e in own] for own in episodes]
    return -population.likelihood(weights, [prompt_ids(e) for e in shots], answers).entropy[:, None]


def prompt_ids(episode: Episode) -> list[int]:
    return episode.ids[: episode.own.index(True)]


def written(base: Base, episode: Episode | None) -> list[int]:
    """What the model wrote, first turn only; an end alone for a lost episode."""
    if episode is None:
        return [base.codec.pad_id]
    start = episode.own.index(True)
    own = episode.own[start:]
    return episode.ids[start : start + (own.index(False) if False in own else len(own))]
