"""Head superposition in a toy, and gated heads that undo it.

Fewer heads than skip trigrams (trigrams.py) learn them all, some of them only together (solo.py). Gated heads (heads.py), more of
them, then imitate their output:

    loss = MSE / variance + weight(t) * contribution

The weight rises to `penalty` over the first third, which decides who speaks for what, and falls to `kept` after 0.6 of the steps,
which lets those heads say it exactly. Several restarts at once; the one of the lowest last loss is kept, and only then judged.

Targets: TARGETS, each with what is enough in the gated heads of every setting and seed.

Source: cmathw/gated-attn (LessWrong, April 2024): the data, the three settings, the criterion.
Differs from the source: the penalty (heads.py), which grows and falls; the loss is relative to the variance; restarts. The source's
published models have R2 0.68, 0.95 and 0.94 and a median active gate of 0.002 to 0.013.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from svf_rl.errors import UserError, check_at_least
from svf_rl.files import write_bytes, write_tensors
from svf_rl.progress import Progress
from svf_rl.settings import listed
from svf_rl.studies.heads import Heads, contribution, descend, places
from svf_rl.studies.maps import contributions, seeds
from svf_rl.studies.parts import part
from svf_rl.studies.solo import LEARNT, examples, measures
from svf_rl.studies.trigrams import draw, problems, vocabulary

JUDGED = {"learnt": LEARNT, "imitation": "R2 KL nats"}  # by what; results of another judge are not mixed with these
SETTINGS = {2: 3, 3: 4, 4: 5}  # heads of the published models, and their trigrams
TARGETS: dict[str, tuple[str, Callable[[float], bool]]] = {  # by column of the table: in words, and what is enough
    "unlearnt_after": ("every trigram learnt", lambda x: x == 0),
    "after": ("no distributed trigram", lambda x: x == 0),
    "R2": ("R2 of at least 0.98", lambda x: x >= 0.98),
    "each_after": ("about one head for each trigram (below 1.5 in the mean)", lambda x: x < 1.5),
    "gate": ("median active gate of at least 0.5", lambda x: x >= 0.5),
}


@dataclass(frozen=True)
class SuperpositionConfig:
    """Settings of the study; configs/study.yaml says what each key does."""

    heads: str = "[2,3,4]"
    seeds: int = 5
    base_steps: int = 3000
    steps: int = 2500
    restarts: int = 12
    rows: int = 96
    copies: int = 3
    penalty: float = 0.1
    kept: float = 0.02
    learning_rate: float = 0.02

    def __post_init__(self) -> None:
        wrong = [name for name in listed(self.heads) if name not in map(str, SETTINGS)]
        if wrong or not listed(self.heads):
            raise UserError(f"expected superposition.heads among {list(SETTINGS)}, found {self.heads}")
        check_at_least(1, self, "seeds base_steps steps restarts rows copies", "superposition.")

    def weight(self, done: float) -> float:
        """The penalty's weight after a share of the steps."""
        fall = min(1.0, max(0.0, (done - 0.6) / 0.15))
        return min(1.0, 3 * done) * self.penalty + fall * (self.kept - self.penalty)


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
    training = {key: value for key, value in asdict(config).items() if key not in ("heads", "seeds")} | JUDGED
    parts = [part(folder, cell.name, training, partial(measure, cell, config, folder)) for cell in progress.over(cells, "training")]
    rows = [summary(cell, found) for cell, found in zip(cells, parts, strict=True)]
    write_bytes(folder / "seeds.png", seeds(rows))
    return {"table": rows, "findings": verdicts(rows), "parts": parts}


def measure(cell: Cell, config: SuperpositionConfig, folder: Path) -> dict[str, Any]:
    """Both models of a cell, trained, saved, drawn and measured."""
    base = train_base(cell, config)
    gated = distil(cell, config, base)
    for kind, model in (("base", base), ("gated", gated)):
        write_tensors(folder / f"{cell.name}-{kind}.safetensors", model.state_dict(), {"heads": str(model.out.shape[1])})
    found = examples(cell.trigrams, 4000, 10_000 + cell.seed)
    write_bytes(folder / f"{cell.name}.png", contributions(base, gated, found))
    ids, forced = draw(cell.trigrams, 20_000, torch.Generator().manual_seed(20_000 + cell.seed))
    return {"data_problems": problems(ids, forced, cell.trigrams, 1000), **measures(base, gated, found)}


def train_base(cell: Cell, config: SuperpositionConfig) -> Heads:
    """The model with fewer heads than trigrams, by next-token loss."""
    width, generator = vocabulary(cell.trigrams), torch.Generator().manual_seed(cell.seed)
    model = Heads(config.restarts, cell.heads, width, False, cell.seed)

    def loss(done: float) -> Float[Tensor, " models"]:
        ids, _ = draw(cell.trigrams, config.rows, generator)
        at = places(ids, width)
        logits = (F.one_hot(at.tokens, width) + model(at)).unflatten(1, ids.shape)[:, :, :-1]
        nats = F.cross_entropy(logits.flatten(0, 2), ids[:, 1:].repeat(config.restarts, 1).flatten(), reduction="none")
        return nats.view(config.restarts, -1).mean(1)

    return descend(model, config.base_steps, config.learning_rate, loss)


def distil(cell: Cell, config: SuperpositionConfig, teacher: Heads) -> Heads:
    """Gated heads that give the teacher's output, each pair of tokens by as few heads as can be."""
    width, generator = vocabulary(cell.trigrams), torch.Generator().manual_seed(1000 + cell.seed)
    model = Heads(config.restarts, cell.heads * config.copies, width, True, 1000 + cell.seed)

    def cost(done: float) -> Float[Tensor, " models"]:
        at = places(draw(cell.trigrams, config.rows, generator)[0], width)
        with torch.no_grad():
            target = teacher(at)
        size = (target - target.mean(1, keepdim=True)).square().sum(-1).mean()
        error: Tensor = (model(at) - target).square().sum(-1).mean(1) / size
        loss: Tensor = error + config.weight(done) * contribution(model, at) / size.sqrt()
        return loss

    return descend(model, config.steps, config.learning_rate, cost)


def summary(cell: Cell, found: Mapping[str, Any]) -> dict[str, Any]:
    """The line of a cell."""
    base, gated = found["base"], found["gated"]
    return {
        "heads": cell.heads,
        "trigrams": cell.trigrams,
        "seed": cell.seed,
        "accuracy": base["accuracy"],
        "gated": gated["accuracy"],
        "unlearnt": len(base["not_learnt"]),
        "unlearnt_after": len(gated["not_learnt"]),
        "distributed": len(base["distributed"]),
        "after": len(gated["distributed"]),
        "heads_each": base["heads_per_trigram"],
        "each_after": gated["heads_per_trigram"],
        "R2": found["r2"],
        "KL": found["kl"],
        "nats": base["nats"],
        "nats_after": gated["nats"],
        "gate": found["median_active_gate"],
    }


def verdicts(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """For each target in how many of the table's lines it is met, and the figures of those that miss it."""
    said = []
    for column, (words, enough) in TARGETS.items():
        missed = [f"{Cell(row['heads'], row['seed']).name} ({row[column]:.3g})" for row in rows if not enough(row[column])]
        by = f", missed by {', '.join(missed)}" if missed else ""
        said.append(f"{words}: met in {len(rows) - len(missed)} of {len(rows)}{by}.")
    return said
