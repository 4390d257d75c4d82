"""The report's figures, as matplotlib draws them, and both forms in which they leave: inline SVG and PNG.

They take the page's text colour (light or dark); series have the colours of Okabe and Ito 2008 (a seventh is dashed), heat maps
cividis, both legible to the colour-blind.
"""

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.figure import Figure as Plot

from svf_rl.evaluate.cells import HUMAN
from svf_rl.evaluate.stats import mean_interval

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
INK = "#010203"  # in the SVG it becomes the page's text colour


def curves(runs: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]], key: str, label: str, top: float | None = None) -> Plot:
    """A line for each name: over its runs, rows of metrics by step, the mean with the 95 % band. Values are between 0 and `top`."""
    plot, axes = _axes()
    for style, (name, own) in zip(_styles(len(runs)), runs.items(), strict=True):
        values: dict[int, list[float]] = {}
        for row in (row for rows in own for row in rows if key in row):
            values.setdefault(row["step"], []).append(row[key])
        steps = sorted(values)
        band = np.array([mean_interval(values[step]) if len(values[step]) > 1 else [values[step][0]] * 3 for step in steps])
        if steps:
            axes.plot(steps, band[:, 0], label=f"{_label(name, 60)} ({len(own)} {'run' if len(own) == 1 else 'seeds'})", **style)
            low, high = np.clip(band[:, 1:].T, 0, top)
            axes.fill_between(steps, low, high, color=style["color"], alpha=0.2, linewidth=0)
    axes.set(xlabel="step", ylabel=label, ylim=(0, top))
    _legend(plot, axes)
    return plot


def _legend(plot: Plot, axes: Any) -> None:
    """Where there are many lines, below the axes, in a figure that is taller by as much."""
    lines, place = len(axes.get_lines()), {"loc": "best"}
    if lines > 4:
        plot.set_size_inches(7, 3.6 + 0.22 * lines)
        place = {"loc": "outside lower left"}
    (plot if lines > 4 else axes).legend(frameon=False, labelcolor=INK, fontsize="small", **place)


def _styles(count: int) -> Iterator[dict[str, str]]:
    """A colour for each line, and another kind of line where the colours begin again."""
    for i in range(count):
        yield {"color": COLOURS[i % len(COLOURS)], "linestyle": ("-", "--", ":")[i // len(COLOURS) % 3]}


def profile(experts: Sequence[Mapping[str, Any]]) -> Plot:
    """Root mean square of z - 1 by layer and kind of matrix, over all experts given."""
    squares: dict[tuple[str, int], list[float]] = {}
    for name, values in (entry for z in experts for entry in z.items()):
        layer = re.search(r"\.(\d+)\.", name)
        place = name.rpartition(".")[2], int(layer[1]) if layer else 0
        squares.setdefault(place, []).append(float(np.mean((np.asarray(values) - 1) ** 2)))
    moves = {place: float(np.sqrt(np.mean(own))) for place, own in squares.items()}
    kinds, layers = list(dict.fromkeys(k for k, _ in moves)), sorted({layer for _, layer in moves})
    grid = np.array([[moves.get((kind, layer), np.nan) for layer in layers] for kind in kinds])
    return _grid(grid, kinds, [f"layer {layer}" for layer in layers], "{:.3f}")


def heat_map(cells: Sequence[Mapping[str, Any]]) -> Plot:
    """Accuracies of a matrix, row by row; the column of human text, which has another unit, is in its table alone."""
    shown = {(c["row"], c["column"]): 100 * c["value"] for c in cells if c["column"] != HUMAN}
    rows, columns = list(dict.fromkeys(r for r, _ in shown)), list(dict.fromkeys(c for _, c in shown))
    return _grid(np.array([[shown.get((r, c), np.nan) for c in columns] for r in rows]), rows, columns, "{:.1f}")


def choices(cells: Sequence[Mapping[str, Any]], row: str) -> Plot:
    """A dispatcher's confusion: for each column's prompts, the share that each expert, or the base, answered."""
    parts = {c["column"]: c["parts"] for c in cells if c["row"] == row and c.get("parts")}
    labels = list(dict.fromkeys(label for own in parts.values() for label in own))
    grid = [[100 * own.get(label, 0) / sum(own.values()) for label in labels] for own in parts.values()]
    return _grid(np.array(grid), list(parts), labels, "{:.0f}")


def mixtures(composed: Sequence[Mapping[str, Any]]) -> Plot:
    """The weight of every expert in each mixture (of weights per matrix, the mean); a line for each task and seed."""
    experts = list(dict.fromkeys(name for one in composed for name in one["experts"]))
    own = [dict(zip(one["experts"], np.atleast_2d(np.asarray(one["weights"]).T).mean(0), strict=True)) for one in composed]
    grid = [[weights.get(name, np.nan) for name in experts] for weights in own]
    return _grid(np.array(grid), [f"{one['env']}, seed {one['seed']}" for one in composed], experts, "{:.2f}")


def gate_map(gates: Mapping[str, Sequence[Sequence[float]]]) -> Plot:
    """The mean gate of the base and of each specialist, by text and layer; of each text `gates` has a list for each layer."""
    rows = {f"{text}, layer {layer}": own for text, layers in gates.items() for layer, own in enumerate(layers)}
    grid = np.array(list(rows.values()))
    specialists = [f"specialist {k}" for k in range(1, grid.shape[1])]
    return _grid(grid, list(rows), ["base", *specialists], "{:.2f}")


def sequence(found: Mapping[str, Any]) -> Plot:
    """The mean accuracy over all tasks after each task, for each way of learning."""
    plot, axes = _axes()
    adapters = found["adapters"]
    for style, (name, one) in zip(_styles(len(adapters)), adapters.items(), strict=True):
        axes.plot([100 * sum(row) / len(row) for row in one["accuracy"]], marker="o", label=name, **style)
    axes.set_xticks(range(len(found["tasks"]) + 1), ["base", *(f"after {task}" for task in found["tasks"])])
    axes.set(ylabel="right answers, %", ylim=(0, 100))
    _legend(plot, axes)
    return plot


def _axes() -> tuple[Plot, Any]:
    with rc_context(_INKED):
        plot = Plot(figsize=(7, 3.6), layout="constrained")
        axes = plot.subplots()
    axes.grid(alpha=0.3)
    return plot, axes


def _grid(values: Any, rows: Sequence[str], columns: Sequence[str], form: str) -> Plot:
    with rc_context(_INKED):
        plot = Plot(figsize=(max(5, 1 + 1.0 * len(columns)), 1 + 0.4 * len(rows)), layout="constrained")
        axes = plot.subplots()
        image = axes.imshow(values, cmap="cividis", aspect="auto")
        axes.set_xticks(range(len(columns)), [_label(name) for name in columns], rotation=30, ha="right")
        axes.set_yticks(range(len(rows)), [_label(name) for name in rows])
    for (i, j), value in np.ndenumerate(values):
        red, green, blue, _ = colormaps["cividis"](image.norm(value))
        ink = "black" if 0.3 * red + 0.6 * green + 0.1 * blue > 0.5 else "white"
        if np.isfinite(value):
            axes.text(j, i, form.format(value), ha="center", va="center", color=ink, fontsize=9)
    return plot


def _label(name: str, longest: int = 24) -> str:
    """Short enough for an axis, and no mathematics."""
    half = longest // 2
    return (name if len(name) <= longest else f"{name[:half]}…{name[-half + 1 :]}").replace("$", r"\$")


_INKED = dict.fromkeys("text.color axes.labelcolor axes.edgecolor xtick.color ytick.color".split(), INK) | {
    "axes.facecolor": "none"
}


def svg(plot: Plot) -> str:
    """The figure as inline SVG in the page's text colour."""
    text = io.StringIO()
    with rc_context({"svg.fonttype": "none", "text.color": INK}):
        plot.savefig(text, format="svg", transparent=True)
    drawn = text.getvalue()
    return re.sub(r"<metadata>.*?</metadata>", "", drawn[drawn.index("<svg") :], flags=re.S).replace(INK, "currentColor")


def png(plot: Plot) -> bytes:
    content = io.BytesIO()
    plot.savefig(content, format="png", dpi=120, facecolor="white")
    return content.getvalue()
