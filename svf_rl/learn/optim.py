"""One optimiser step of either training loop: warm-up and cosine, a clipped gradient, and steps that are not finite skipped."""

import math
from typing import Protocol, runtime_checkable

import torch
from torch import nn

from svf_rl.adapter import Adapter
from svf_rl.errors import Diverged
from svf_rl.learn.checkpoint import Progress


@runtime_checkable
class Recipe(Protocol):
    """What a step needs of a loop's settings. clip: the greatest norm of a gradient; warmup, steps: optimiser steps."""

    @property
    def learning_rate(self) -> float: ...
    @property
    def warmup(self) -> int: ...
    @property
    def steps(self) -> int: ...
    @property
    def clip(self) -> float: ...
    @property
    def max_bad_steps(self) -> int: ...


def learning_rate(recipe: Recipe, step: int) -> float:
    """Linear warm-up, then cosine to a tenth."""
    if step < recipe.warmup:
        return recipe.learning_rate * (step + 1) / recipe.warmup
    done = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return recipe.learning_rate * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done)))


def descend(
    adapter: Adapter, optimizer: torch.optim.Optimizer, recipe: Recipe, progress: Progress, step: int, sound: bool
) -> float:
    """Step along the accumulated gradient and forget it; returns its norm before clipping.

    Skipped unless the gradient is finite and what led to it is `sound`. Diverged after too many skipped steps in a row.
    """
    norm = float(nn.utils.clip_grad_norm_([p for p in adapter.parameters().values() if p.requires_grad], recipe.clip))
    finite = sound and math.isfinite(norm)
    if finite:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe, step)
        optimizer.step()
        adapter.constrain()
    optimizer.zero_grad()
    count(progress, finite, recipe.max_bad_steps)
    return norm


def count(progress: Progress, finite: bool, most: int) -> None:
    """Diverged when `most` steps in a row were not finite."""
    progress.bad_steps = 0 if finite else progress.bad_steps + 1
    progress.skipped_steps += not finite
    if progress.bad_steps >= most:
        raise Diverged(f"the loss or gradient was not finite in {progress.bad_steps} steps in a row; lower the learning rate")
