"""Next-token training of an adapter on a corpus, the base frozen: the loop beside trainer.py, with the same folder and checkpoints.

    loss = (1 - share) CE(special text) + share CE(general text) + the adapter's penalty

Some rows of each step are general text, on which the adapted model should stay what it is. The gate of shiftable attention learns
which of its branches a row belongs to (0 is the base), every branch counting the same however many rows it has; for the first
`labelled_steps` it is set to that branch, so that each specialist meets its own text before any gate knows one from another.
Special text is one corpus, which is the first specialist's, or one for each specialist, in order; each has as many of the step's
rows.

Every row is a function of (seed, step), so a resumed run is the uninterrupted one. The parameters kept are the best on the held-out
parts of the corpora, those it began with included; the test part is not touched here.

Source: computermaster0101/shiftable-attention-poc, README, "train a specialist model".
Differs from the source:
1. The whole base is frozen and used; there, embeddings, feed-forward blocks and head of the frozen model are fresh random ones.
2. General text is part of every step, and the gate is told what it reads; without, nothing ever asks it to close.
3. Losses that choose and report are of held-out text.
"""

import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch
from jaxtyping import Float, Int
from torch import Tensor

from svf_rl.adapter import Adapter
from svf_rl.attention.adapter import AttentionAdapter
from svf_rl.attention.shiftable import labelled, prior
from svf_rl.base.load import Base
from svf_rl.base.texts import draw
from svf_rl.errors import UserError, check_at_least
from svf_rl.learn.checkpoint import Progress, save_checkpoint
from svf_rl.learn.optim import descend
from svf_rl.learn.scores import token_scores
from svf_rl.learn.tracking import Tracker


@dataclass(frozen=True)
class LanguageConfig:
    """Settings of the loop; configs/train.yaml says what each one does."""

    general: str = "general"
    share: float = 0.25
    steps: int = 150
    rows: int = 16
    length: int = 128
    learning_rate: float = 0.005
    warmup: int = 10
    clip: float = 1.0
    labelled_steps: int = 75
    label_weight: float = 1.0
    eval_every: int = 25
    patience: int = 3
    max_bad_steps: int = 5
    start: str | None = None
    prior: bool = False

    def __post_init__(self) -> None:
        check_at_least(1, self, "steps rows eval_every max_bad_steps", "lm.")
        if not 0 <= self.share < 1 or self.length < 2 or min(self.warmup, self.patience, self.labelled_steps) < 0:
            raise UserError("lm needs share in [0, 1), length of at least 2, and no negative number of steps")
        if not (0 < self.learning_rate < math.inf and 0 < self.clip < math.inf and 0 <= self.label_weight < math.inf):
            raise UserError("lm.learning_rate and lm.clip must be above 0, lm.label_weight at least 0")


@dataclass(frozen=True)
class Texts:
    """Rows of ids [n, length + 1] by side: train, valid, test. special: of each corpus in order, by its name in the tables."""

    special: dict[str, dict[str, Tensor]]
    general: dict[str, Tensor]


@dataclass
class LanguageRun:
    """Everything a run works with. best: the adapter's state at the best validation; progress: its accuracy is 1 / perplexity."""

    base: Base
    adapter: Adapter
    texts: Texts
    config: LanguageConfig
    seed: int
    folder: Path
    tracker: Tracker
    optimizer: torch.optim.Optimizer
    best: dict[str, Tensor]
    progress: Progress


def train(run: LanguageRun) -> None:
    """Train until the steps are done or validation stops improving; `run.best` then holds the best parameters.

    Diverged after too many steps in a row that were not finite.
    """
    c, p = run.config, run.progress
    if p.base_valid < 0:  # not known from elsewhere
        p.base_valid = p.best = 1 / validate(run)
    for step in run.tracker.steps(p.step, c.steps):
        if c.patience and p.step - p.best_step >= c.patience * c.eval_every:
            break
        begun = time.monotonic()
        figures = update(run, step)
        figures["seconds"] = time.monotonic() - begun
        figures["tokens_per_second"] = c.rows * c.length / figures["seconds"]
        p.step, p.seconds = step + 1, p.seconds + figures["seconds"]
        if (step + 1) % c.eval_every == 0 or step + 1 == c.steps:
            figures["valid_perplexity"] = keep_if_best(run)
        run.tracker.record(step, figures)
        run.tracker.bar.show(loss=f"{figures['loss']:.3f}", tokens_per_second=round(figures["tokens_per_second"]))
        save_checkpoint(run.folder / "checkpoint.safetensors", run.adapter.parameters(), run.best, run.optimizer, p)


def update(run: LanguageRun, step: int) -> dict[str, float]:
    """One optimiser step; one that is not finite is skipped. Returns figures to log."""
    loss = sum(backward(run, ids, branch, step) for branch, ids in batches(run, step))
    norm = descend(run.adapter, run.optimizer, run.config, run.progress, step, math.isfinite(loss))
    return {"loss": loss, "gradient_norm": norm}


def batches(run: LanguageRun, step: int) -> Iterator[tuple[int, Int[Tensor, "rows time"]]]:
    """(branch, ids) of the step: rows of the k-th corpus for the k-th specialist that trains, of general text for the base, 0."""
    special, few = run.texts.special.values(), general_rows(run.config)
    parts = zip(special, evenly(run.config.rows - few, len(special)), strict=True)
    for branch, (corpus, rows) in enumerate(parts, 1 + run.progress.older):
        yield branch, draw(corpus["train"], rows, run.seed, step).to(run.base.device)
    if few:
        yield 0, draw(run.texts.general["train"], few, run.seed, step).to(run.base.device)


def general_rows(config: LanguageConfig) -> int:
    """How many of a step's rows are general text."""
    return round(config.rows * config.share)


def evenly(total: int, parts: int) -> list[int]:
    """`total` as a sum of numbers that differ by at most one, the larger ones first."""
    return [total // parts + (i < total % parts) for i in range(parts)]


def backward(run: LanguageRun, ids: Int[Tensor, "rows time"], branch: int, step: int) -> float:
    """Add the gradient of these rows' part of the loss; returns that part."""
    share = len(ids) / run.config.rows
    with told(run, branch, step, share):
        loss = next_token_nats(run.base, ids).mean()
        if (penalty := run.adapter.penalty()) is not None:
            loss = loss + penalty
    loss = loss * share
    loss.backward()
    return loss.item()


def told(run: LanguageRun, branch: int, step: int, share: float) -> AbstractContextManager[None]:
    """Within it, shiftable attention knows which branch the text belongs to; each counts the same, whatever its share of the rows.

    No other adapter has branches.
    """
    adapter = run.adapter
    if not (isinstance(adapter, AttentionAdapter) and adapter.name == "shiftable"):
        return nullcontext()
    branches = len(run.texts.special) + bool(general_rows(run.config))
    weight = run.config.label_weight / (branches * share)
    return labelled(adapter, branch, step < run.config.labelled_steps, weight)


def closed(adapter: Adapter) -> AbstractContextManager[None]:
    """Within it, every gate is at the base: of shiftable attention by a prior of 0 on all else, of others by their absence."""
    if not (isinstance(adapter, AttentionAdapter) and adapter.name == "shiftable"):
        return adapter.disabled()
    shut = torch.full((1, 1 + adapter.config.specialists), -torch.inf, device=adapter.model.device)
    shut[:, 0] = 0.0
    return prior(adapter, shut)


def next_token_nats(base: Base, ids: Int[Tensor, "rows time"]) -> Float[Tensor, "rows next"]:
    """-log p of every token but the first of each row, given those before it."""
    hidden = base.hidden(ids[:, :-1], use_cache=False).flatten(0, 1)
    vocabulary = base.model.config.get_text_config().vocab_size
    return -token_scores(hidden, ids[:, 1:].flatten(), base.logits, 1.0, None, vocabulary).logp.view(len(ids), -1)


@torch.no_grad()
def held_out_nats(base: Base, ids: Int[Tensor, "n time"], rows: int = 16) -> Float[Tensor, "n next"]:
    """The same for any number of rows, a few at a time, on the processor's memory."""
    return torch.cat([next_token_nats(base, part.to(base.device)).cpu() for part in ids.split(rows)])


def validate(run: LanguageRun) -> float:
    """Perplexity of the held-out part of the corpus; of several their geometric mean, in which each counts the same."""
    return math.exp(fmean(held_out_nats(run.base, corpus["valid"]).mean().item() for corpus in run.texts.special.values()))


def keep_if_best(run: LanguageRun) -> float:
    """Validate; remember the parameters if they are the best so far."""
    perplexity, p = validate(run), run.progress
    p.history.append([p.step, perplexity])
    if 1 / perplexity > p.best:
        p.best, p.best_step, run.best = 1 / perplexity, p.step, run.adapter.state()
    return perplexity


@torch.no_grad()
def mean_gates(base: Base, adapter: AttentionAdapter, ids: Int[Tensor, "n time"], rows: int = 16) -> list[list[float]]:
    """The mean gate of every branch, base first, for each layer in order."""
    looks = [adapter.look(part.to(base.device), return_gates=True)[1] for part in ids[:, :-1].split(rows)]
    layers = zip(*looks, strict=True)
    return [torch.cat([gates.flatten(0, 1) for gates in layer]).mean(0).tolist() for layer in layers]
