"""The matrix: rows of answerers, columns of held-out tests; each figure with interval, n and the paired difference to the base.

accuracy     share of right answers, greedy (Wilson's interval); sampled, the mean over questions of pass@1 (t interval), and pass@k
human        nats per token on held-out human text (bootstrap over passages): lower is better
difference   row - base on the same questions; p by paired_p, corrected by Holm over all cells of the table that are not copies
oracle       each column under the expert trained on its environment (of several the one that gained most on validation): a
             dispatcher that is never wrong. Where there is none, under the base or the expert that turned out best on the very same
             questions: a bound, not a method
"""

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from svf_rl.base.load import Base, BaseConfig
from svf_rl.errors import FaultyRun, UserError, check_at_least
from svf_rl.evaluate import stats
from svf_rl.evaluate.cells import HUMAN, Cell, Column, Decoding, cached, cell_key, measure
from svf_rl.evaluate.rows import Row
from svf_rl.evaluate.stats import Interval
from svf_rl.progress import Progress
from svf_rl.rollout.episodes import Split

ORACLE = "oracle"
COLUMNS = "[math,code,classify,hard_math,list_code,word_code,new_classify,human]"


@dataclass(frozen=True)
class MatrixConfig:
    """`svf-rl matrix`; configs/matrix.yaml says what each key does."""

    base: BaseConfig = field(default_factory=BaseConfig)
    experts: str = ""
    columns: str = COLUMNS
    dispatchers: str = "[prompt,probe,classifier]"
    split: Split = Split.test
    size: int = 300
    temperature: float = 0.0
    samples: int = 1
    k: int = 1
    rows: int = 128
    seed: int = 0
    out: str = "runs/matrix"

    def __post_init__(self) -> None:
        check_at_least(1, self, "size samples k rows")
        check_at_least(0, self, "temperature")
        if self.samples > 1 and self.temperature == 0:
            raise UserError(f"samples={self.samples} greedy answers would all be the same; give temperature=1")
        if self.k > self.samples:
            raise UserError(f"pass@{self.k} needs at least {self.k} samples, found samples={self.samples}")


@dataclass(frozen=True)
class Figure:
    """One published cell. value, low, high: accuracy, or nats per token (column human); difference: to the base, paired."""

    row: str
    column: str
    n: int
    value: float
    low: float
    high: float
    difference: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None
    p: float | None = None
    p_holm: float | None = None
    k: int | None = None
    pass_at_k: float | None = None
    kl: float | None = None
    tokens_per_answer: float | None = None
    parts: Mapping[str, int] | None = None


def evaluate(
    base: Base, rows: Sequence[Row], columns: Sequence[Column], decoding: Decoding, folder: Path, batch: int = 128
) -> dict[tuple[str, str], Cell]:
    """Every cell by (row, column), those on disk in folder/cells not computed again. The first row is the base."""
    found: dict[tuple[str, str], Cell] = {}
    pairs = [(row, column) for column in columns for row in rows]
    for row, column in Progress().over(pairs, "cells"):
        before = found.get((rows[0].name, column.name))

        def make(row: Row = row, column: Column = column, before: Cell | None = before) -> Cell:
            return measure(base, row, column, decoding, before, batch)

        found[row.name, column.name] = cached(folder / "cells", cell_key(base, row, column, decoding), make)
    return found


def figures(
    cells: Mapping[tuple[str, str], Cell], rows: Sequence[Row], columns: Sequence[Column], decoding: Decoding, k: int
) -> list[Figure]:
    """The published figures, row by row; p corrected over all but the base's."""
    found = [
        figure(cells[row.name, column.name], None if row is rows[0] else cells[rows[0].name, column.name], decoding.samples, k)
        for row in rows
        for column in columns
    ]
    compared = [f for f in found if f.p is not None]
    corrected = dict(zip(map(id, compared), stats.holm([f.p for f in compared if f.p is not None]), strict=True))
    found = [Figure(**{**asdict(f), "p_holm": corrected.get(id(f))}) for f in found]
    return found + oracle(found, rows, columns)


def figure(cell: Cell, before: Cell | None, samples: int, k: int) -> Figure:
    """One cell against the base's. FaultyRun if no question was answered by both."""
    if cell.column == HUMAN:
        return _loss(cell, before)
    mine, theirs = scores(cell, samples), scores(before, samples) if before else {}
    shared = [q for q in mine if before is None or q in theirs]
    if not shared:
        raise FaultyRun(f"no question of {cell.column} was answered by {cell.row} and the base: the environment failed")
    after = [mine[q] for q in shared]
    value = stats.proportion(int(sum(after)), len(after)) if samples == 1 else stats.mean_interval(after)
    change: dict[str, Any] = {}
    if before:
        pair = ([theirs[q] for q in shared], after)
        change = _change(stats.paired_difference(*pair), stats.paired_p(*pair))
    lengths = [sum(a.own) for a in cell.answers]
    return Figure(
        cell.row, cell.column, len(after), *value, **change,
        k=k if k > 1 else None,
        pass_at_k=sum(stats.pass_at_k(samples, round(s * samples), k) for s in after) / len(after) if k > 1 else None,
        kl=cell.kl, tokens_per_answer=sum(lengths) / len(lengths), parts=cell.parts,
    )  # fmt: skip


def scores(cell: Cell, samples: int) -> dict[int, float]:
    """By question the share of right answers; a question that lost a sample to a fault is left out."""
    right: dict[int, list[bool]] = {}
    for answer in cell.answers:
        right.setdefault(answer.question, []).append(answer.reward >= 1.0)
    return {question: sum(found) / samples for question, found in right.items() if len(found) == samples}


def _loss(cell: Cell, before: Cell | None) -> Figure:
    change: dict[str, Any] = {}
    if before:
        moved = [a - b for a, b in zip(cell.nats, before.nats, strict=True)]
        change = _change(stats.rate(moved, cell.tokens), stats.paired_p(before.nats, cell.nats))
    return Figure(cell.row, cell.column, len(cell.nats), *stats.rate(cell.nats, cell.tokens), **change, parts=cell.parts)


def _change(difference: Interval, p: float) -> dict[str, Any]:
    return {"difference": difference.value, "difference_low": difference.low, "difference_high": difference.high, "p": p}


def oracle(found: Sequence[Figure], rows: Sequence[Row], columns: Sequence[Column]) -> list[Figure]:
    """Copies of the cells of each column's own expert, else of the best single one; nothing without experts."""
    by_gain = sorted(rows, key=lambda row: row.gain, reverse=True)  # which keeps the order of equals
    trained = {row.environment: row.name for row in reversed(by_gain) if row.environment}
    by_place = {(f.row, f.column): f for f in found}
    single = [rows[0].name, *trained.values()]
    chosen = [
        by_place[trained[column.id], column.name]
        if column.id in trained
        else max((by_place[name, column.name] for name in single), key=lambda f: -f.value if f.column == HUMAN else f.value)
        for column in columns
    ]
    return [Figure(**{**asdict(f), "row": ORACLE, "p": None, "parts": {f.row: f.n}}) for f in chosen] if trained else []


def over_seeds(matrices: Sequence[Mapping[str, Any]]) -> list[Figure]:
    """The mean of every cell over matrices, as `svf-rl matrix` writes them, with its interval over them; n counts them.

    Cells that not all of them have are left out; [] for fewer than two matrices.
    """
    values: dict[tuple[str, str], list[float]] = {}
    for cell in (cell for matrix in matrices for cell in matrix["cells"]):
        values.setdefault((cell["row"], cell["column"]), []).append(cell["value"])
    shared = {place: own for place, own in values.items() if len(own) == len(matrices) > 1}
    interval = {HUMAN: stats.mean_interval}
    return [Figure(*place, len(own), *interval.get(place[1], stats.share_interval)(own)) for place, own in shared.items()]


def to_csv(found: Sequence[Figure]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(Figure.__dataclass_fields__), lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(f) | {"parts": " ".join(f"{k}:{v}" for k, v in (f.parts or {}).items())} for f in found)
    return text.getvalue()


def to_table(found: Sequence[Figure], cell: Callable[[Figure], str]) -> tuple[list[str], list[list[str]]]:
    """The header, and a line for each row, its cells written by `cell`."""
    rows, columns = list(dict.fromkeys(f.row for f in found)), list(dict.fromkeys(f.column for f in found))
    by_place = {(f.row, f.column): cell(f) for f in found}
    return ["", *columns], [[row, *(by_place.get((row, column), "") for column in columns)] for row in rows]


def to_markdown(found: Sequence[Figure], cell: Callable[[Figure], str]) -> str:
    header, lines = to_table(found, cell)
    return "\n".join("| " + " | ".join(words) + " |" for words in [header, ["---"] + ["---:"] * (len(header) - 1), *lines])


def short(f: Figure) -> str:
    """ "97.3 +48.7*": value and difference in points, or nats; * where the corrected p is below 0.05."""
    unit, digits = (1, 3) if f.column == HUMAN else (100, 1)
    moved = "" if f.difference is None or f.p_holm is None else f" {unit * f.difference:+.{digits}f}"
    return f"{unit * f.value:.{digits}f}{moved}{'*' if f.p_holm is not None and f.p_holm < 0.05 else ''}"


def full(f: Figure) -> str:
    """ "97.3 [94.8, 98.6]": the value with its interval."""
    unit, digits = (1, 3) if f.column == HUMAN else (100, 1)
    return f"{unit * f.value:.{digits}f} [{unit * f.low:.{digits}f}, {unit * f.high:.{digits}f}]"


def divergences(f: Figure) -> str:
    return "" if f.kl is None else f"{f.kl:.4f}" if math.isfinite(f.kl) else "inf"
