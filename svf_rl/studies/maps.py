"""Figures of the superposition study, as PNG: who says what before and after, and all seeds."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.figure import Figure as Plot
from torch import Tensor

from svf_rl.evaluate.figures import COLOURS, png
from svf_rl.studies.heads import Heads
from svf_rl.studies.solo import Examples, solo_heads

TARGETS = {"after": 0.0, "R2": 0.98, "each_after": 1.0, "gate": 0.5}
LABELS = {
    "after": "distributed trigrams (grey: before)",
    "R2": "R2 of the imitation",
    "each_after": "heads that speak for a trigram (grey: before)",
    "gate": "median active gate",
}


@torch.no_grad()
def contributions(base: Heads, gated: Heads, found: Examples) -> bytes:
    """For each trigram and head: what it adds to its C over the other Cs, and what of its attention to A its gate lets through."""
    plot = Plot(figsize=(11, 6.4), layout="constrained")
    grid = plot.subplots(2, 2, width_ratios=[base.out.shape[1], gated.out.shape[1]])
    for column, (name, model) in enumerate({"plain heads": base, "gated heads": gated}.items()):
        solo = solo_heads(model.per_head(found.at)[0], found)
        margins, passed = margin(model, found), attention(model, found)
        top = float(margins.abs().max())
        _draw(plot, grid[0, column], margins, solo, f"{name}: added to C over the mean of the other Cs", "PuOr", -top, top)
        _draw(plot, grid[1, column], passed, solo, f"{name}: gate x attention from B to A", "cividis", 0.0, 1.0)
    return png(plot)


def margin(model: Heads, found: Examples) -> Float[Tensor, "trigrams heads"]:
    n, outputs, rows = found.trigrams, model.per_head(found.at)[0], []
    for b in range(1, n + 1):
        said = outputs[found.forced & (found.at.tokens == b)].mean(0)[:, n + 1 : 2 * n + 1]
        rows.append(said[:, b - 1] - (said.sum(1) - said[:, b - 1]) / (n - 1))
    return torch.stack(rows)


def attention(model: Heads, found: Examples) -> Float[Tensor, "trigrams heads"]:
    """G A of all As at a B that an A precedes, mean over places."""
    tables = model.tables()
    through = (tables.weight * tables.gate)[0, :, found.at.tokens, 0].T * found.at.counts[:, :1] / model.total(found.at.pairs)[:, 0]
    return torch.stack([through[found.forced & (found.at.tokens == b)].mean(0) for b in range(1, found.trigrams + 1)])


def _draw(
    plot: Plot, axes: Any, values: Tensor, solo: Mapping[int, list[int]], title: str, colours: str, low: float, high: float
) -> None:
    image = axes.imshow(values.numpy(), cmap=colours, vmin=low, vmax=high, aspect="auto")
    axes.set_title(title, fontsize=9)
    axes.set_xticks(range(values.shape[1]), [f"head {h}" for h in range(values.shape[1])], fontsize=8)
    axes.set_yticks(range(len(values)), [f"A … B{b} → C{b}" + ("" if solo[b] else " distributed") for b in solo], fontsize=8)
    for b, heads in solo.items():
        axes.scatter(heads, [b - 1] * len(heads), marker="o", s=160, facecolors="none", edgecolors="#d55e00", linewidths=2)
    plot.colorbar(image, ax=axes)


def seeds(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Every seed of every setting as a point, with the targets as lines."""
    plot = Plot(figsize=(12, 3.2), layout="constrained")
    settings = list(dict.fromkeys((row["heads"], row["trigrams"]) for row in rows))
    for axes, (key, target) in zip(plot.subplots(1, 4), TARGETS.items(), strict=True):
        for x, setting in enumerate(settings):
            own = [row for row in rows if (row["heads"], row["trigrams"]) == setting]
            across = x + np.linspace(-0.2, 0.2, len(own))
            before = {"after": "distributed", "each_after": "heads_each"}.get(key)
            if before:
                axes.scatter(across, [row[before] for row in own], color="0.7", s=25)
            axes.scatter(across, [row[key] for row in own], color=COLOURS[0], s=25)
        axes.axhline(target, color=COLOURS[1], linewidth=1)
        axes.set_xticks(range(len(settings)), [f"{heads} for {trigrams}" for heads, trigrams in settings])
        axes.set_title(LABELS[key], fontsize=9)
    return png(plot)
