"""One layer of one-dimensional attention heads on one-hot tokens, gated or not; several models at once.

    out_i = sum over h, j of  G_ijh A_ijh v_jh W_O,h      G_ijh = clamp(a_ih c_jh, 0, 1), A the causal softmax

There are no positions, so what tokens say to each other is a table [query token, key token], and a place in a sequence is its token
and how often each token has come by then:

    z = (pairs @ (e^score G v)) / (pairs @ e^score)

Source: cmathw/gated-attn, gated_attention/modelling.
Differs from the source:
1. The tables above, in float64, for several models (restarts) in one product; the numbers are those of the pairwise form.
2. The penalty is on what a head contributes, not on its gate: small gates on large values are no cheaper. It counts the pairs
   that exist (j <= i); gates at 0 or 1 keep a tenth of their gradient, so that a head can return.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from svf_rl.attention.gated import POWER, TINY, leaky_clamp


class Places(NamedTuple):
    """Places in sequences: the token of each, and how often each token has come by then, itself included."""

    tokens: Int[Tensor, " places"]
    counts: Float[Tensor, "places V"]

    @property
    def pairs(self) -> Float[Tensor, "places V_V"]:
        """How often each (query token, key token) occurs at a place."""
        own = F.one_hot(self.tokens, self.counts.shape[-1]).double()
        return (own[:, :, None] * self.counts[:, None]).flatten(1)


def places(ids: Int[Tensor, "rows time"], vocabulary: int) -> Places:
    """All places of the sequences, row by row."""
    return Places(ids.flatten(), F.one_hot(ids, vocabulary).double().cumsum(1).flatten(0, 1))


class Tables(NamedTuple):
    """For query and key tokens: e^score (up to a factor for each query), the gate in [0, 1]; for key tokens the value."""

    weight: Float[Tensor, "models heads V V"]
    gate: Float[Tensor, "models heads V V"]
    value: Float[Tensor, "models heads V"]

    @property
    def said(self) -> Float[Tensor, "models heads V V"]:
        return self.weight * self.gate * self.value[:, :, None]


class Heads(nn.Module):
    """`models` models of as many heads. Gated ones start with every gate near one half."""

    def __init__(self, models: int, heads: int, vocabulary: int, gated: bool, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, vocabulary, generator=generator).double()

        self.maps = nn.Parameter(normal(models, 3, heads) * math.sqrt(2 / vocabulary))
        self.biases = nn.Parameter(torch.zeros(models, 3, heads).double())
        self.out = nn.Parameter(normal(models, heads) * math.sqrt(2 / vocabulary))
        self.gates = nn.Parameter(normal(models, 2, heads) * 0.2 + 0.7) if gated else None

    def tables(self) -> Tables:
        query, key, value = (self.maps + self.biases[..., None]).unbind(1)
        scores = query[..., None] * key[..., None, :]
        weight = (scores - scores.amax(-1, keepdim=True).detach()).exp()
        if self.gates is None:
            return Tables(weight, torch.ones_like(weight), value)
        row, column = self.gates.unbind(1)
        return Tables(weight, leaky_clamp(row[..., None] * column[..., None, :]), value)

    def total(self, pairs: Float[Tensor, "places V_V"]) -> Float[Tensor, "places models heads"]:
        """The softmax's denominator, up to the factor of the tables."""
        return self._over_keys(self.tables().weight, pairs)

    def _over_keys(self, table: Float[Tensor, "models heads V V"], pairs: Float[Tensor, "places V_V"]) -> Tensor:
        summed: Tensor = (pairs @ table.flatten(2).flatten(0, 1).T).unflatten(1, self.out.shape[:2])
        return summed

    def _spoken(self, at: Places) -> Float[Tensor, "models places heads"]:
        pairs = at.pairs
        return (self._over_keys(self.tables().said, pairs) / self.total(pairs)).transpose(0, 1)

    def per_head(self, at: Places) -> Float[Tensor, "models places heads V"]:
        """What each head adds to the logits."""
        return self._spoken(at)[..., None] * self.out[:, None]

    def forward(self, at: Places) -> Float[Tensor, "models places V"]:
        return self._spoken(at) @ self.out

    def pairwise(self, at: Places) -> Float[Tensor, "models places heads V"]:
        """|G A v W_O| of each key token, for one occurrence of it, whether it occurs or not."""
        strength = self.tables().said.abs() * self.out.norm(dim=-1)[..., None, None]
        said: Tensor = strength[:, :, at.tokens].transpose(1, 2) / self.total(at.pairs).transpose(0, 1)[..., None]
        return said

    def only(self, model: int) -> "Heads":
        """One of the models, by itself."""
        _, heads, width = self.out.shape
        alone = Heads(1, heads, width, self.gates is not None, 0)
        alone.load_state_dict({name: tensor[model : model + 1] for name, tensor in self.state_dict().items()})
        return alone


def contribution(model: Heads, at: Places) -> Float[Tensor, " models"]:
    """The L0.6 norm over heads of what they say through a pair, summed over pairs, mean over places."""
    total = ((model.pairwise(at) + TINY) ** POWER).sum(2) ** (1 / POWER)
    mean: Tensor = (total * at.counts).sum((1, 2)) / len(at.tokens)
    return mean


def descend(model: Heads, steps: int, learning_rate: float, loss: Callable[[float], Float[Tensor, " models"]]) -> Heads:
    """Adam on every model's loss, given the share of the steps that are done; of the models the one of the lowest last losses."""
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, learning_rate / 100)
    recent = torch.zeros(len(model.out)).double()
    for step in range(steps):
        optimizer.zero_grad()
        losses = loss(step / steps)
        losses.sum().backward()
        optimizer.step()
        schedule.step()
        recent = 0.98 * recent + 0.02 * losses.detach()
    return model.only(int(recent.nan_to_num(torch.inf).argmin()))
