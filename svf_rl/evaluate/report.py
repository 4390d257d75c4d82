"""One self-contained HTML page on runs, a matrix and forgetting: text, tables, and figures as inline SVG. No network, no script.

Everything a model or an environment wrote is escaped: it is hostile.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure as Plot

from svf_rl.evaluate.figures import choices, curves, heat_map, mixtures, png, profile, sequence, svg
from svf_rl.evaluate.matrix import ORACLE, full, over_seeds, to_table
from svf_rl.files import write_bytes

STYLE = """:root{color-scheme:light dark}body{font:16px/1.5 system-ui,sans-serif;max-width:78rem;margin:2rem auto;padding:0 1rem;
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
    """A run folder as read: metrics by step, samples, summary, and z by matrix where the expert has one.

    settings: what is not as by default.
    """

    folder: str
    summary: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]]
    samples: Sequence[Mapping[str, Any]]
    z: Mapping[str, Any] = field(default_factory=dict)
    settings: str = ""

    @property
    def name(self) -> str:
        """What its seeds share."""
        return f"{self.summary['env']}, {self.summary['adapter']} {self.settings}".rstrip()


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
    for number, (title, plot) in enumerate(plots.items(), 1):
        short = re.sub(r"[^a-z0-9]+", "-", title.lower())[:60].strip("-")
        write_bytes(out.with_name(f"{out.stem}-{number:02}-{short}.png"), png(plot))
    figures = "".join(f"<h2>{escape(title)}</h2>{svg(plot)}" for title, plot in plots.items())
    body = summaries(found.runs) + seeds_table(found.matrices) + figures + samples(found.runs)
    write_bytes(out, document(body).encode())


def figures_of_runs(runs: Sequence[RunRecord]) -> dict[str, Plot]:
    plots: dict[str, Plot] = {}
    if runs:
        metrics = {name: [run.metrics for run in runs if run.name == name] for name in dict.fromkeys(run.name for run in runs)}
        plots["Reward of sampled answers"] = curves(metrics, "reward", "share of right answers", 1.0)
        plots["Tokens per answer"] = curves(metrics, "tokens_per_answer", "tokens")
    for name in dict.fromkeys(run.name for run in runs if run.z):
        own = [run.z for run in runs if run.z and run.name == name]
        plots[f"How far z moved: {name}, mean of {len(own)}"] = profile(own)
    return plots


def figures_of_matrices(matrices: Sequence[Mapping[str, Any]]) -> dict[str, Plot]:
    plots: dict[str, Plot] = {}
    for title, cells in pooled(matrices).items():
        plots[f"{title}: right answers in %"] = heat_map(cells)
        for row in dict.fromkeys(c["row"] for c in cells if len(c.get("parts") or {}) > 1 and c["row"] != ORACLE):
            plots[f"{title}: which expert {row} chose, % of prompts"] = choices(cells, row)
    return plots


def pooled(matrices: Sequence[Mapping[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Of matrices over seeds one, with the means and all the choices; each by itself where they have no cell in common."""
    shared = over_seeds(matrices)
    if not shared:
        return {f"Matrix {number}": matrix["cells"] for number, matrix in enumerate(matrices, 1)}
    parts: dict[tuple[str, str], Counter[str]] = {}
    for cell in (cell for matrix in matrices for cell in matrix["cells"]):
        parts.setdefault((cell["row"], cell["column"]), Counter()).update(cell.get("parts") or {})
    cells = [{"row": f.row, "column": f.column, "value": f.value, "parts": parts[f.row, f.column]} for f in shared]
    return {f"Mean of {len(matrices)} matrices": cells}


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
        change = f"{100 * s['difference']:+.1f} [{100 * low:+.1f},\u00a0{100 * high:+.1f}]"  # on one line
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


def seeds_table(matrices: Sequence[Mapping[str, Any]]) -> str:
    """The mean over the matrices of seeds, with its interval; nothing where there are fewer than two alike."""
    cells = over_seeds(matrices)
    if not cells:
        return ""
    header, lines = to_table(cells, lambda f: full(f).replace(", ", ",\u00a0"))  # an interval stays on one line
    return f"<h2>Mean over {cells[0].n} matrices, with 95 % intervals over them</h2>{table(header, lines)}"
