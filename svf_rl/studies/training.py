"""Training a small language model from scratch, in epochs; one that was stopped goes on.

AdamW with decay on matrices only, warm-up and a cosine by the step, the gradient's norm clipped to 1. A batch is a pure function of
(seed, step). After each epoch the weights, the optimiser and the history go into one file, which replaces that of the epoch before;
after the last, no optimiser. The weights alone of each epoch stay in files of their own.

Source: the recipe of karpathy/nanoGPT train.py.
"""

import json
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor, nn

from svf_rl.errors import Diverged, UserError
from svf_rl.files import hash_tensors, read_tensors, write_tensors
from svf_rl.progress import Progress
from svf_rl.studies.scratch import Language, Text, backward, judge

CLIP = 1.0


@dataclass(frozen=True)
class Recipe:
    """batches: of an epoch, at most; rows: of a batch; warmup: in steps."""

    epochs: int
    batches: int
    rows: int
    learning_rate: float
    warmup: int = 20
    weight_decay: float = 0.1

    def rate(self, step: int, steps: int) -> float:
        """Linear warm-up, then cosine to a tenth."""
        done = max(0, step - self.warmup) / max(1, steps - self.warmup)
        return self.learning_rate * min(1.0, (step + 1) / self.warmup) * (0.55 + 0.45 * math.cos(math.pi * done))


@dataclass
class History:
    """Nats of every batch and its seconds; nats per token of the validation text after every epoch."""

    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    valid: list[float] = field(default_factory=list)


def batches(rows: Int[Tensor, "rows length"], recipe: Recipe, seed: int, epoch: int) -> list[Int[Tensor, "batch length"]]:
    """Of one epoch: the rows in an order of its own, none of them twice. A last batch that is not full is left out."""
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(1_000_003 * seed + epoch))
    size = min(recipe.rows, len(rows))
    return [rows[some] for some in order.split(size) if len(some) == size][: recipe.batches]


def train(language: Language, text: Text, recipe: Recipe, seed: int, path: Path, progress: Progress) -> History:
    """All epochs that are still to be done. path: of the checkpoint, which at the end holds the trained model."""
    optimizer = _optimizer(language, recipe)
    about = json.dumps([asdict(recipe), seed, hash_tensors({"train": text.train})])
    history = _resume(path, language, optimizer, about)
    each = len(batches(text.train, recipe, seed, 0))
    with progress.count((recipe.epochs - len(history.valid)) * each, path.stem) as done:
        for epoch in range(len(history.valid), recipe.epochs):
            for i, ids in enumerate(batches(text.train, recipe, seed, epoch)):
                begun = time.perf_counter()
                rate = recipe.rate(epoch * each + i, recipe.epochs * each)
                history.losses.append(_update(language, optimizer, ids, rate))
                history.seconds.append(time.perf_counter() - begun)
                done(1)
            history.valid.append(judge(language, text.valid)["nats"])
            write_tensors(epoch_file(path, epoch + 1), _weights(language))
            _save(path, language, optimizer.state if epoch + 1 < recipe.epochs else {}, history, about)
    return history


def epoch_file(path: Path, epoch: int) -> Path:
    """Where the model is as it was after this epoch, from 1."""
    return path.with_name(f"{path.stem}-epoch{epoch}{path.suffix}")


def load_model(path: Path, language: Language) -> None:
    """Take the weights of a checkpoint or of an epoch's file. UserError if there is none, or of a model of another shape."""
    try:
        _load(language, read_tensors(path)[0])
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the model {str(path)!r} ({error}); choose another out") from error


def _optimizer(language: Language, recipe: Recipe) -> torch.optim.AdamW:
    trained = [p for p in language.parameters() if p.requires_grad]
    matrices, vectors = [p for p in trained if p.ndim > 1], [p for p in trained if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.95), fused=True)


def _update(language: Language, optimizer: torch.optim.Optimizer, ids: Int[Tensor, "rows length"], rate: float) -> float:
    for group in optimizer.param_groups:
        group["lr"] = rate
    loss = backward(language, ids)
    norm = nn.utils.clip_grad_norm_(language.parameters(), CLIP)
    if not math.isfinite(float(norm)):
        raise Diverged("the gradient is not finite; lower the learning rate")
    optimizer.step()
    language.constrain()
    optimizer.zero_grad()
    return loss


def _save(path: Path, language: Language, moments: Mapping[Tensor, Mapping[str, Tensor]], history: History, about: str) -> None:
    tensors = _weights(language)
    for name, p in language.named_parameters():
        tensors |= {f"{key}.{name}": moment for key, moment in moments.get(p, {}).items()}
    write_tensors(path, tensors, {"history": json.dumps(vars(history)), "training": about})


def _weights(language: Language) -> dict[str, Tensor]:
    return {f"p.{name}": p for name, p in language.named_parameters()}


@torch.no_grad()
def _resume(path: Path, language: Language, optimizer: torch.optim.Optimizer, about: str) -> History:
    """Load the checkpoint if there is one. UserError for one that is damaged, or of another model, recipe, seed or text."""
    if not path.exists():
        return History()
    try:
        stored, fields = read_tensors(path)
        if fields["training"] != about:
            raise ValueError("it is of another recipe, seed or text")
        _load(language, stored)
        history = History(**json.loads(fields["history"]))
    except (OSError, KeyError, ValueError) as error:
        raise UserError(f"cannot go on from {str(path)!r} ({error}); remove it, or choose another out") from error
    for name, p in language.named_parameters():
        if f"step.{name}" in stored:
            optimizer.state[p] = {key: stored[f"{key}.{name}"].clone() for key in ("step", "exp_avg", "exp_avg_sq")}
    return history


@torch.no_grad()
def _load(language: Language, stored: dict[str, Tensor]) -> None:
    """The weights of a checkpoint. ValueError if it is of a model of another shape."""
    own = dict(language.named_parameters())
    if {name: stored[f"p.{name}"].shape for name in own if f"p.{name}" in stored} != {name: p.shape for name, p in own.items()}:
        raise ValueError("it is of a model of another shape")
    for name, p in own.items():
        p.copy_(stored[f"p.{name}"])
