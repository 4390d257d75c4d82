"""The cross-entropy method over weights in [0, 1]: draw, keep the elite, draw around them.

    candidates ~ Normal(mean, std), clipped to [0, 1];   mean, std <- those of the best share of them

Candidates are ranked by their fitness, a row of keys of which the first counts first. Candidate 0 of every round is the mean
itself, and the first round tries the given starting points too, so the best found is never worse than these.

Source: Transformer-Squared, section 3.2 and appendix (population 32, elite share 0.2, mean 1/K, std 0.5).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from svf_rl.progress import Progress

Fitness = Callable[[Float[Tensor, "population n"]], Float[Tensor, "population keys"]]
SETTLED = 0.01  # a std below it everywhere, or a gain of every key below it, is no progress


@dataclass(frozen=True)
class Found:
    """mean: where the search ended.  best: the best candidate, with its fitness.  history: the best fitness after every round."""

    mean: Float[Tensor, " n"]
    best: Float[Tensor, " n"]
    fitness: list[float]
    history: list[list[float]]


def cross_entropy(
    fitness: Fitness,
    mean: Float[Tensor, " n"],
    *,
    starts: Sequence[Float[Tensor, " n"]] = (),
    population: int = 32,
    elite: float = 0.2,
    std: float = 0.5,
    rounds: int = 20,
    patience: int = 4,
    seed: int = 0,
    progress: Progress | None = None,
) -> Found:
    """Search until `rounds` are done, the best has not risen for `patience` rounds, or the candidates agree."""
    stream, spread = torch.Generator().manual_seed(seed), torch.full_like(mean, std)
    best, top, history, since = mean, [-math.inf], list[list[float]](), 0
    bar = progress or Progress(quiet=True)
    for step in bar.steps(0, rounds, "searching"):
        fixed = [mean, *(starts if step == 0 else [])][:population]
        drawn = mean + spread * torch.randn(population - len(fixed), len(mean), generator=stream)
        candidates = torch.cat([torch.stack(fixed), drawn.clamp(0, 1)])
        scores = fitness(candidates).tolist()
        order = sorted(range(population), key=scores.__getitem__, reverse=True)
        since = 0 if _rises(scores[order[0]], top) else since + 1
        if scores[order[0]] > top:
            best, top = candidates[order[0]], scores[order[0]]
        history.append(top)
        chosen = candidates[order[: max(2, round(elite * population))]]
        mean, spread = chosen.mean(0), chosen.std(0, unbiased=False)
        bar.show(best=f"{top[0]:.3f}", spread=f"{float(spread.max()):.2f}")
        if since >= patience or float(spread.max()) < SETTLED:
            break
    return Found(mean, best, top, history)


def _rises(new: Sequence[float], old: Sequence[float]) -> bool:
    """Whether the fitness is better by more than a trifle in the first key that differs by more than one."""
    for a, b in zip(new, old, strict=False):
        if abs(a - b) > SETTLED:
            return a > b
    return False
