"""The first pass: prompts go in, the weights of the experts come out.

    weights[b, k] >= 0: how much of expert k answers prompt b;   z_b = 1 + sum_k weights[b, k] (z_k - 1)

A row of zeros is abstention: that prompt is answered by the base, bit for bit. What a dispatcher saw and what it cost is kept with
the weights in a `Decision`.

Source: Transformer-Squared, section 3.2 (SakanaAI/self-adaptive-llms).
Differs from the source: the label "other" there leaves the previous expert loaded; here a dispatcher leaves nothing loaded.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from svf_rl.errors import UserError
from svf_rl.svf.adapter import SVFAdapter
from svf_rl.svf.expert import mix
from svf_rl.types import Expert

BASE = "base"


@dataclass(frozen=True)
class Decision:
    """What the first pass said of a batch of prompts; UserError for weights that are negative or not finite.

    weights: one for each expert, or for each expert and matrix.  labels, scores: what was chosen for each prompt and among what.
    seconds: of the whole batch.  tokens: read and written by the base in them.
    """

    weights: Float[Tensor, "batch experts *matrices"]
    labels: list[str]
    scores: list[dict[str, float]]
    seconds: float = 0.0
    tokens: int = 0

    def __post_init__(self) -> None:
        if not bool((self.weights.isfinite() & (self.weights >= 0)).all()):
            raise UserError(f"weights of experts must be finite and not negative, found {self.weights.tolist()}")
        if not len(self.weights) == len(self.labels) == len(self.scores):
            raise ValueError(f"{len(self.weights)} weights, {len(self.labels)} labels and {len(self.scores)} scores of one batch")


@runtime_checkable
class Dispatcher(Protocol):
    """Anything that decides which expert answers which prompt."""

    def decide(self, prompts: Sequence[str]) -> Decision:
        """Weights of the experts for each prompt."""
        ...


@dataclass(frozen=True)
class Fixed:
    """The same weights for every prompt: no first pass. label says where they come from."""

    weights: Float[Tensor, "experts *matrices"]
    label: str

    def decide(self, prompts: Sequence[str]) -> Decision:
        weights = self.weights.expand(len(prompts), *self.weights.shape)
        return Decision(weights, [self.label] * len(prompts), [{}] * len(prompts))


def weigh(scores: Float[Tensor, "batch choices"], soft: bool) -> Float[Tensor, "batch choices"]:
    """Hard: 1 for the highest score. Soft: softmax. A row with a score that is NaN abstains."""
    best = torch.nn.functional.one_hot(scores.argmax(-1), scores.shape[-1]).to(scores.dtype)
    weights = scores.softmax(-1) if soft else best
    return weights.masked_fill(scores.isnan().any(-1, keepdim=True), 0.0)


def mixture(experts: Sequence[Expert], weights: Float[Tensor, "experts *matrices"]) -> Expert | None:
    """The expert that these weights make of `experts`; None, the base, if all are zero."""
    if not bool(weights.any()):
        return None
    if weights.ndim == 1:
        return mix(experts, weights.tolist())
    return mix(experts, dict(zip(experts[0].z, weights.T.tolist(), strict=True)))


@contextmanager
def using(adapter: SVFAdapter, expert: Expert | None) -> Iterator[None]:
    """Within it, the adapter has this expert, merged, or (None) is the base; afterwards what it had before."""
    if expert is None:
        with adapter.disabled():
            yield
        return
    before = adapter.state()
    adapter.load_expert(expert)
    try:
        yield
    finally:
        adapter.load_state(before)
