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
from dataclasses import asdict, dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from svf_rl.attention.gated import POWER, TINY, leaky_clamp
from svf_rl.errors import UserError
from svf_rl.files import write_tensors
from svf_rl.progress import Progress
from svf_rl.settings import listed
from svf_rl.studies.parts import part
from svf_rl.studies.trigrams import draw, vocabulary

SETTINGS = {2: 3, 3: 4, 4: 5}  # heads of the published models, and their trigrams


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
class SuperpositionConfig:
    """Settings of the study; configs/study.yaml says what each key does."""

    heads: str = "[2,3,4]"
    seeds: int = 5
    steps: int = 4000
    rows: int = 256
    copies: int = 2
    penalty: float = 0.01
    learning_rate: float = 0.01

    def __post_init__(self) -> None:
        wrong = [name for name in listed(self.heads) if name not in map(str, SETTINGS)]
        if wrong or min(self.seeds, self.steps, self.rows, self.copies) < 1:
            raise UserError(f"expected heads among {list(SETTINGS)}, seeds, steps, rows and copies of at least 1, found {self}")


@dataclass(frozen=True)
class Cell:
    """One of the published settings with one seed."""

    heads: int
    seed: int

    @property
    def trigrams(self) -> int:
        return SETTINGS[self.heads]

    @property
    def name(self) -> str:
        return f"{self.heads}heads-{self.trigrams}trigrams-seed{self.seed}"


def run(config: SuperpositionConfig, folder: Path, progress: Progress) -> dict[str, Any]:
    """Every setting and seed, those that are done from the folder."""
    cells = [Cell(int(heads), seed) for heads in listed(config.heads) for seed in range(config.seeds)]
    training = {key: value for key, value in asdict(config).items() if key not in ("heads", "seeds")}
    parts = [part(folder, cell.name, training, partial(measure, cell, config, folder)) for cell in progress.over(cells, "training")]
    return {"table": [summary(cell, found) for cell, found in zip(cells, parts, strict=True)], "parts": parts}


def measure(cell: Cell, config: SuperpositionConfig, folder: Path) -> dict[str, Any]:
    """Both models of a cell, trained, saved and measured."""
    base = train_base(cell, config)
    gated = distil(cell, config, base)
    for kind, model in (("base", base), ("gated", gated)):
        write_tensors(folder / f"{cell.name}-{kind}.safetensors", model.state_dict(), {"heads": str(len(model.out))})
    return figures(base, gated, cell)


def summary(cell: Cell, found: dict[str, Any]) -> dict[str, Any]:
    """The line of a cell."""
    return {
        "heads": cell.heads,
        "trigrams": cell.trigrams,
        "seed": cell.seed,
        "base_accuracy": found["accuracy"]["base"],
        "distributed_before": len(found["distributed"]["base"]),
        "distributed_after": len(found["distributed"]["gated"]),
        "r2": found["r2"],
        "heads_per_pair": found["heads_per_pair"],
        "median_active_gate": found["median_active_gate"],
    }


def train_base(cell: Cell, config: SuperpositionConfig) -> Heads:
    """The model with fewer heads than trigrams, by next-token loss."""
    trigrams = cell.trigrams
    model, generator = Heads(cell.trigrams, cell.heads, False, cell.seed), torch.Generator().manual_seed(cell.seed)

    def loss(done: float) -> Tensor:
        ids, _ = draw(trigrams, config.rows, generator)
        logits = F.one_hot(ids, vocabulary(trigrams)).float() + model(ids)
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())

    return _descend(model, config, loss)


def distil(cell: Cell, config: SuperpositionConfig, teacher: Heads) -> Heads:
    """Gated heads that give the teacher's output, each source and destination by as few heads as can be."""
    trigrams = cell.trigrams
    model = Heads(trigrams, cell.heads * config.copies, True, cell.seed + 1)
    generator = torch.Generator().manual_seed(cell.seed + 1)

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


def _descend(model: Heads, config: SuperpositionConfig, loss: Callable[[float], Tensor]) -> Heads:
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
def figures(base: Heads, gated: Heads, cell: Cell) -> dict[str, object]:
    """R2 of the imitation, accuracy, solo heads before and after, distributed trigrams, median of the gates that are open."""
    trigrams = cell.trigrams
    ids, forced = draw(trigrams, 4000, torch.Generator().manual_seed(10_000 + cell.seed))
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
