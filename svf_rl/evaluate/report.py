"""One self-contained HTML page on runs, a matrix and forgetting: text, tables, and figures as inline SVG. No network, no script.

Everything a model or an environment wrote is escaped: it is hostile. Figures take the page's text colour (light or dark); series
have the colours of Okabe and Ito 2008, heat maps cividis, both legible to the colour-blind.
"""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.figure import Figure as Plot

from svf_rl.evaluate.matrix import full, over_seeds, to_table
from svf_rl.evaluate.stats import mean_interval
from svf_rl.files import write_bytes

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
INK = "#010203"  # in the SVG it becomes the page's text colour
STYLE = """:root{color-scheme:light dark}body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;
color:#1a1a1a;background:#fff}table{border-collapse:collapse;display:block;overflow-x:auto}
td,th{padding:.2rem .6rem;border-bottom:1px solid #8888;
text-align:right}td:first-child,th:first-child{text-align:left}td.text{text-align:left;white-space:pre-wrap;font-family:monospace;vertical-align:top}
svg{max-width:100%;height:auto}@media(prefers-color-scheme:dark){body{color:#e8e8e8;background:#161616}}"""


@dataclass(frozen=True)
class ReportConfig:
    """`svf-rl report`; configs/report.yaml says what each key does."""

    runs: str = "runs"
    out: str = "report.html"


@dataclass(frozen=True)
class RunRecord:
    """A run folder as read: metrics by step, samples, summary, and z by matrix where the expert has one."""

    folder: str
    summary: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]]
    samples: Sequence[Mapping[str, Any]]
    z: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What its seeds share."""
        return f"{self.summary['env']}, {self.summary['adapter']}"


@dataclass(frozen=True)
class Findings:
    """All that a page is about: runs, and what `svf-rl matrix`, `forgetting` and `compose` wrote as JSON."""

    runs: Sequence[RunRecord] = ()
    matrices: Sequence[Mapping[str, Any]] = ()
    forgotten: Sequence[Mapping[str, Any]] = ()
    composed: Sequence[Mapping[str, Any]] = ()


def page(found: Findings, out: Path) -> None:
    """Write the page, and every figure as PNG beside it."""
    plots = figures_of_runs(found.runs) | figures_of_matrices(found.matrices)
    for number, one in enumerate(found.forgotten, 1):
        plots[f"Forgetting {number}: mean accuracy on all tasks"] = sequence(one)
    if found.composed:
        plots["Weights of mixtures found from a few examples"] = mixtures(found.composed)
    for title, plot in plots.items():
        write_bytes(out.with_name(f"{out.stem}-{re.sub(r'[^a-z0-9]+', '-', title.lower()).strip('-')}.png"), png(plot))
    figures = "".join(f"<h2>{escape(title)}</h2>{svg(plot)}" for title, plot in plots.items())
    body = summaries(found.runs) + seeds_table(found.matrices) + figures + samples(found.runs)
    write_bytes(out, document(body).encode())


def figures_of_runs(runs: Sequence[RunRecord]) -> dict[str, Plot]:
    plots: dict[str, Plot] = {}
    if runs:
        plots["Reward of sampled answers"] = curves(runs, "reward", "share of right answers")
        plots["Tokens per answer"] = curves(runs, "tokens_per_answer", "tokens")
    moved = {f"How far z moved: {run.name}, {run.folder}": profile(run.z) for run in runs if run.z}
    return plots | moved


def figures_of_matrices(matrices: Sequence[Mapping[str, Any]]) -> dict[str, Plot]:
    plots: dict[str, Plot] = {}
    for number, matrix in enumerate(matrices, 1):
        plots[f"Matrix {number}: right answers in %"] = heat_map(matrix["cells"])
        for row in dict.fromkeys(c["row"] for c in matrix["cells"] if len(c.get("parts") or {}) > 1):
            plots[f"Matrix {number}: which expert {row} chose, % of prompts"] = choices(matrix["cells"], row)
    return plots


def document(body: str) -> str:
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>svf-rl</title>'
    policy = (
        """<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">"""
    )
    return (
        f'<!doctype html><html lang="en"><head>{head}{policy}<style>{STYLE}</style></head><body><h1>Report</h1>{body}</body></html>'
    )


def table(header: Sequence[str], rows: Sequence[Sequence[object]], kind: str = "") -> str:
    """An HTML table; every cell is escaped. kind: the class of its cells."""
    top = "".join(f"<th>{escape(name)}</th>" for name in header)
    lines = ("".join(f'<td class="{kind}">{escape(str(cell))}</td>' for cell in row) for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{''.join(f'<tr>{line}</tr>' for line in lines)}</tbody></table>"


def summaries(runs: Sequence[RunRecord]) -> str:
    header = ["run", "seed", "base %", "adapted %", "difference [95 %]", "questions", "trained", "bytes", "seconds"]
    rows = []
    for run in runs:
        s, (low, high) = run.summary, run.summary["difference_ci95"]
        change = f"{100 * s['difference']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
        accuracies = (f"{100 * s['base_accuracy']:.1f}", f"{100 * s['expert_accuracy']:.1f}")
        rows.append(
            [run.name, s["seed"], *accuracies, change, s["n_test"], s["trained_parameters"], s["expert_bytes"], s["seconds"]]
        )
    return f"<h2>Runs</h2>{table(header, rows)}" if rows else ""


def samples(runs: Sequence[RunRecord], count: int = 3) -> str:
    """Answers of the first step and the last, side by side."""
    pieces = []
    for run in runs:
        first, last = run.samples[:count], run.samples[-count:]
        rows = [[a["prompt"], a["answer"], b["prompt"], b["answer"]] for a, b in zip(first, last, strict=True)]
        title = f"<h2>Answers: {escape(run.name)}, seed {escape(str(run.summary['seed']))}</h2>"
        pieces.append(title + table(["question", "first step", "question", "last step"], rows, "text"))
    return "".join(pieces)


def curves(runs: Sequence[RunRecord], key: str, label: str) -> Plot:
    """A line for each environment and adapter, over its seeds the mean with the 95 % band."""
    plot, axes = _axes()
    for colour, name in zip(COLOURS * len(runs), dict.fromkeys(run.name for run in runs), strict=False):
        values: dict[int, list[float]] = {}
        for row in (row for run in runs if run.name == name for row in run.metrics if key in row):
            values.setdefault(row["step"], []).append(row[key])
        steps = sorted(values)
        band = np.array([mean_interval(values[step]) if len(values[step]) > 1 else [values[step][0]] * 3 for step in steps])
        if steps:
            axes.plot(steps, band[:, 0], color=colour, label=f"{name} ({max(map(len, values.values()))} seeds)")
            axes.fill_between(steps, band[:, 1], band[:, 2], color=colour, alpha=0.2, linewidth=0)
    axes.set(xlabel="step", ylabel=label)
    axes.legend(frameon=False)
    return plot


def profile(z: Mapping[str, Any]) -> Plot:
    """Root mean square of z - 1 by layer and kind of matrix."""
    moves: dict[tuple[str, int], float] = {}
    for name, values in z.items():
        layer = re.search(r"\.(\d+)\.", name)
        moves[name.rpartition(".")[2], int(layer[1]) if layer else 0] = float(np.sqrt(np.mean((np.asarray(values) - 1) ** 2)))
    kinds, layers = list(dict.fromkeys(k for k, _ in moves)), sorted({layer for _, layer in moves})
    grid = np.array([[moves.get((kind, layer), np.nan) for layer in layers] for kind in kinds])
    return _grid(grid, kinds, [f"layer {layer}" for layer in layers], "{:.3f}")


def heat_map(cells: Sequence[Mapping[str, Any]]) -> Plot:
    """Accuracies of a matrix, row by row; the column of human text, which has another unit, is in its table alone."""
    shown = {(c["row"], c["column"]): 100 * c["value"] for c in cells if c["column"] != "human"}
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


def seeds_table(matrices: Sequence[Mapping[str, Any]]) -> str:
    """The mean over the matrices of seeds, with its interval; nothing where there are fewer than two alike."""
    cells = over_seeds(matrices)
    if not cells:
        return ""
    header, lines = to_table(cells, full)
    return f"<h2>Mean over {cells[0].n} matrices, with 95 % intervals over them</h2>{table(header, lines)}"


def sequence(found: Mapping[str, Any]) -> Plot:
    """The mean accuracy over all tasks after each task, for each way of learning."""
    plot, axes = _axes()
    for colour, (name, one) in zip(COLOURS, found["adapters"].items(), strict=False):
        axes.plot([100 * sum(row) / len(row) for row in one["accuracy"]], color=colour, marker="o", label=name)
    axes.set_xticks(range(len(found["tasks"]) + 1), ["base", *(f"after {task}" for task in found["tasks"])])
    axes.set(ylabel="right answers, %", ylim=(0, 100))
    axes.legend(frameon=False)
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


def _label(name: str) -> str:
    """Short enough for an axis, and no mathematics."""
    return (name if len(name) <= 24 else f"{name[:23]}…").replace("$", r"\$")


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
