"""Head superposition in a toy, and gated heads that undo it.

The data: skip trigrams A ... B_b -> C_b, one A for all b, so that one head, whose output depends on its source alone, cannot say
which C is right. Tokens: A = 0, B_b = b, C_b = b + n for b = 1..n, BOS = 2n + 1. A sequence begins with BOS and is drawn uniformly;
once an A is open no other A comes, and when a B does, its C is forced and closes the A.

The model: one layer of attention, heads of one dimension, embedding and unembedding the identity, logits = x + attention(x). Fewer
heads than trigrams learn them all, some of them only together (`solo_heads`). Gated heads, more of them, then imitate its output:

    out_i = sum over h, j of  G_ijh A_ijh v_jh W_O,h      G_ijh = clamp(a_ih c_jh, 0, 1)
    loss  = MSE / variance + ramp * penalty * mean over allowed pairs of  (sum over h |G A v W_O|^0.6)^(1/0.6)

Source: cmathw/gated-attn (LessWrong, April 2024).
Differs from the source:
1. The penalty is on what a head contributes, not on its gate, so that small gates on large values are no cheaper.
2. It counts pairs that exist (j <= i), grows from zero, and gates at 0 or 1 keep a tenth of their gradient.
3. The check that tokens are uniform compares the part before any A is open; the forced tokens are not meant to be uniform.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from svf_rl.attention.gated import POWER, TINY, leaky_clamp

LENGTH = 11
SETTINGS = {2: 3, 3: 4, 4: 5}  # heads of the published models, and their trigrams


def vocabulary(trigrams: int) -> int:
    return 2 * trigrams + 2


def draw(trigrams: int, rows: int, generator: torch.Generator) -> tuple[Int[Tensor, "rows time"], Bool[Tensor, "rows time"]]:
    """Sequences, and where the next token is forced (the position of a B that an A precedes)."""
    v = vocabulary(trigrams)
    ids, forced = torch.full((rows, LENGTH), v - 1), torch.zeros(rows, LENGTH, dtype=torch.bool)
    is_open = torch.zeros(rows, dtype=torch.bool)
    for i in range(1, LENGTH):
        any_token = torch.randint(0, v, (rows,), generator=generator)
        no_a = torch.randint(1, v, (rows,), generator=generator)
        now, due = torch.where(is_open, no_a, any_token), forced[:, i - 1]
        ids[:, i] = torch.where(due, ids[:, i - 1] + trigrams, now)
        is_open = (is_open & ~due) | (~due & (ids[:, i] == 0))
        forced[:, i] = is_open & (ids[:, i] >= 1) & (ids[:, i] <= trigrams)
    forced[:, -1] = False
    return ids, forced


def problems(ids: Int[Tensor, "rows time"], forced: Bool[Tensor, "rows time"], trigrams: int, at_least: int) -> list[str]:
    """What is wrong with a data set; empty if it is valid."""
    source, follows = ids[:, :-1][forced[:, :-1]], ids[:, 1:][forced[:, :-1]]
    counts = torch.bincount(source, minlength=trigrams + 1)[1 : trigrams + 1]
    before = torch.cat([torch.zeros(len(ids), 1, dtype=torch.bool), (ids == 0).cumsum(1)[:, :-1] > 0], 1)[:, 1:]
    free = torch.bincount(ids[:, 1:][~before], minlength=vocabulary(trigrams)).float()
    found = {
        "a trigram is missing or rare": bool((counts < at_least).any()),
        "a B is followed by another token than its C": not torch.equal(follows, source + trigrams),
        "free tokens are not uniform": bool(free.max() > 1.5 * free.min()),
    }
    return [what for what, wrong in found.items() if wrong]


class Heads(nn.Module):
    """Attention of one-dimensional heads on one-hot tokens, gated or not; gated heads start with every gate near its middle."""

    def __init__(self, trigrams: int, heads: int, gated: bool, seed: int) -> None:
        super().__init__()
        generator, width = torch.Generator().manual_seed(seed), vocabulary(trigrams)
        self.maps = nn.Parameter(torch.randn(3, heads, width, generator=generator) * math.sqrt(2 / width))
        self.biases = nn.Parameter(torch.zeros(3, heads))
        self.out = nn.Parameter(torch.randn(heads, width, generator=generator) * math.sqrt(2 / width))
        self.gates = nn.Parameter(torch.randn(2, heads, width, generator=generator) * 0.2 + 0.7) if gated else None

    def strengths(self, ids: Int[Tensor, "rows time"]) -> tuple[Float[Tensor, "rows heads time time"], Tensor | None]:
        """G A v of every pair and head, and G."""
        query, key, value = (self.maps[..., ids] + self.biases[..., None, None]).transpose(1, 2)
        scores = query[..., None] * key[..., None, :]
        time = ids.shape[1]
        future = torch.ones(time, time, dtype=torch.bool).triu(1)
        weights = scores.masked_fill(future, -torch.inf).softmax(-1)
        gates = None
        if self.gates is not None:
            row, column = self.gates[..., ids].transpose(1, 2)
            gates = leaky_clamp(row[..., None] * column[..., None, :])
            weights = weights * gates
        return weights * value[..., None, :], gates

    def per_head(self, ids: Int[Tensor, "rows time"]) -> Float[Tensor, "rows heads time width"]:
        """What each head adds to the logits."""
        return self.strengths(ids)[0].sum(-1)[..., None] * self.out[:, None]

    def forward(self, ids: Int[Tensor, "rows time"]) -> Float[Tensor, "rows time width"]:
        return torch.einsum("bhij,hw->biw", self.strengths(ids)[0], self.out)


@dataclass(frozen=True)
class StudyConfig:
    """steps of each of the two trainings; copies: gated heads for each head; penalty: weight of the contributions."""

    heads: int = 2
    seed: int = 0
    steps: int = 4000
    rows: int = 256
    copies: int = 2
    penalty: float = 0.01
    learning_rate: float = 0.01


def train_base(config: StudyConfig) -> Heads:
    """The model with fewer heads than trigrams, by next-token loss."""
    trigrams = SETTINGS[config.heads]
    model, generator = Heads(trigrams, config.heads, False, config.seed), torch.Generator().manual_seed(config.seed)

    def loss(done: float) -> Tensor:
        ids, _ = draw(trigrams, config.rows, generator)
        logits = F.one_hot(ids, vocabulary(trigrams)).float() + model(ids)
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())

    return _descend(model, config, loss)


def distil(config: StudyConfig, teacher: Heads) -> Heads:
    """Gated heads that give the teacher's output, each source and destination by as few heads as can be."""
    trigrams = SETTINGS[config.heads]
    model = Heads(trigrams, config.heads * config.copies, True, config.seed + 1)
    generator = torch.Generator().manual_seed(config.seed + 1)

    def loss(done: float) -> Tensor:
        ids, _ = draw(trigrams, config.rows, generator)
        with torch.no_grad():
            target = teacher(ids)
        error: Tensor = F.mse_loss(model(ids), target) / target.var()
        return error + config.penalty * min(1.0, 2 * done) * contribution(model, ids)

    return _descend(model, config, loss)


def contribution(model: Heads, ids: Int[Tensor, "rows time"]) -> Float[Tensor, ""]:
    """The L0.6 norm over heads of what they say, mean over the pairs that exist."""
    strength = model.strengths(ids)[0].abs() * model.out.norm(dim=-1)[:, None, None]
    total: Tensor = ((strength + TINY) ** POWER).sum(1) ** (1 / POWER)
    time = ids.shape[1]
    return total.tril().sum() / (len(ids) * time * (time + 1) / 2)


def _descend(model: Heads, config: StudyConfig, loss: Callable[[float], Tensor]) -> Heads:
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps, config.learning_rate / 100)
    for step in range(config.steps):
        optimizer.zero_grad()
        loss(step / config.steps).backward()
        optimizer.step()
        schedule.step()
    return model


@torch.no_grad()
def solo_heads(model: Heads, ids: Tensor, forced: Tensor, trigrams: int) -> dict[int, list[int]]:
    """For each trigram the heads that encode it alone: whatever other heads are removed, those that stay still say its C.

    In more than 99 % of its examples. A trigram without one is distributed.
    """
    outputs, heads = model.per_head(ids), model.out.shape[0]
    found: dict[int, list[int]] = {b: [] for b in range(1, trigrams + 1)}
    for b in found:
        said = outputs.transpose(1, 2)[forced & (ids == b)]  # [examples, heads, width]
        for head in range(heads):
            others = [h for h in range(heads) if h != head]
            subsets = (list(kept) for size in range(heads) for kept in combinations(others, size))
            if all((said[:, [head, *kept]].sum(1).argmax(-1) == b + trigrams).float().mean() > 0.99 for kept in subsets):
                found[b].append(head)
    return found


@torch.no_grad()
def figures(base: Heads, gated: Heads, config: StudyConfig) -> dict[str, object]:
    """R2 of the imitation, accuracy, solo heads before and after, distributed trigrams, median of the gates that are open."""
    trigrams = SETTINGS[config.heads]
    ids, forced = draw(trigrams, 4000, torch.Generator().manual_seed(10_000 + config.seed))
    target, found = base(ids), gated(ids)
    x = F.one_hot(ids, vocabulary(trigrams)).float()
    strength, gates = gated.strengths(ids)
    assert gates is not None
    time = ids.shape[1]
    said = (strength.abs() * gated.out.norm(dim=-1)[:, None, None]).tril()
    active = said > 0.1 * float(said.max())
    solo = {"base": solo_heads(base, ids, forced, trigrams), "gated": solo_heads(gated, ids, forced, trigrams)}

    def accuracy(logits: Tensor) -> float:
        return float((logits[forced].argmax(-1) == (ids + trigrams)[forced]).float().mean())

    return {
        "r2": 1 - float((found - target).square().mean() / (target - target.mean((0, 1))).square().mean()),
        "accuracy": {"base": accuracy(x + target), "gated": accuracy(x + found)},
        "solo": solo,
        "distributed": {name: [b for b, heads in table.items() if not heads] for name, table in solo.items()},
        "median_active_gate": float(gates[active].median()),
        "heads_per_pair": float(active.sum(1)[..., torch.ones(time, time).tril().bool()].float().mean()),
    }
