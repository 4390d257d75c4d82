"""Tables over seeds: what adapters reach, cost and weigh on environments and on text, and the means of matrices, compositions and
forgetting.

Of several seeds the mean and its t interval over seeds; of one seed the interval over its questions, or rows of text. Of two runs
that are alike the later counts.
"""

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from svf_rl.evaluate.matrix import Figure, over_seeds
from svf_rl.evaluate.stats import Interval, mean_interval, proportion, share_interval

MIB = 1 << 20
FEWSHOT = "few-shot"
TRANSFER = ("average_accuracy", "backward_transfer", "forgetting", "forward_transfer")


@dataclass(frozen=True)
class Line:
    """Runs that differ in nothing but the seed. settings: what is not as by default; accuracies are shares, memory is in bytes."""

    env: str
    adapter: str
    settings: str
    seeds: int
    base: float
    accuracy: Interval
    gain: Interval
    trained_parameters: int
    bytes: float
    seconds: float
    peak_memory: float | None


def lines(runs: Sequence[tuple[str, Mapping[str, Any]]]) -> list[Line]:
    """A line for each environment, adapter and settings, of (settings, summary) of every run, in order of environment."""
    found = [_line(name, own) for name, own in _alike(runs, "env").items()]
    environments = list(dict.fromkeys(line.env for line in found))
    return sorted(found, key=lambda line: environments.index(line.env))


def _alike(runs: Sequence[tuple[str, Mapping[str, Any]]], key: str) -> dict[tuple[str, str, str], list[Mapping[str, Any]]]:
    """The summaries that differ in nothing but the seed, one for each seed, by (what they have under `key`, adapter, settings)."""
    groups: dict[tuple[str, str, str], dict[int, Mapping[str, Any]]] = {}
    for settings, summary in runs:
        groups.setdefault((summary[key], summary["adapter"], settings), {})[summary["seed"]] = summary
    return {name: list(own.values()) for name, own in groups.items()}


def _line(name: tuple[str, str, str], own: list[Mapping[str, Any]]) -> Line:
    first = own[0]
    if len(own) > 1:
        accuracy, gain = share_interval([s["expert_accuracy"] for s in own]), mean_interval([s["difference"] for s in own])
    else:
        accuracy = proportion(round(first["expert_accuracy"] * first["n_test"]), first["n_test"])
        gain = Interval(first["difference"], *first["difference_ci95"])
    means = [fmean(s[key] for s in own) for key in ("base_accuracy", "expert_bytes", "seconds")]
    memory = [s["peak_memory"] for s in own if "peak_memory" in s]  # runs of earlier versions have none
    base, size, seconds = means
    peak = fmean(memory) if memory else None
    return Line(*name, len(own), base, accuracy, gain, first["trained_parameters"], size, seconds, peak)


def to_markdown(found: Sequence[Line]) -> str:
    header = "env | adapter | seeds | base % | adapted % [95 %] | gain [95 %] | trained numbers | bytes | seconds | peak MiB"
    rows = [f"| {header} |", "|---|---|" + "---:|" * (header.count("|") - 1)]
    for line in found:
        cells = [line.env, f"{line.adapter} {line.settings}".strip(), line.seeds, f"{100 * line.base:.1f}"]
        cells += [_points(line.accuracy), _points(line.gain, "+"), line.trained_parameters]
        cells += ["" if x is None else f"{x:.0f}" for x in (line.bytes, line.seconds, line.peak_memory and line.peak_memory / MIB)]
        rows.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(rows)


def _points(interval: Interval, sign: str = "") -> str:
    value, low, high = (f"{100 * x:{sign}.1f}" for x in interval)
    return f"{value} [{low}, {high}]"


def to_csv(found: Sequence[Line]) -> str:
    text = io.StringIO()
    rows = [_flat(line) for line in found]
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _flat(line: Line) -> dict[str, Any]:
    """accuracy becomes accuracy_value, accuracy_low and accuracy_high, and so does gain."""
    row = asdict(line)
    for name in ("accuracy", "gain"):
        row |= {f"{name}_{part}": x for part, x in row.pop(name)._asdict().items()}
    return row


@dataclass(frozen=True)
class TextLine:
    """Runs of objective=lm that differ in nothing but the seed, on one of their held-out texts.

    before, after: perplexities. change: of the loss, in nats per token. gates: of the base and each specialist, mean over layers;
    empty for adapters without specialists. closed_is_base: in every run, bit for bit.
    """

    corpus: str
    adapter: str
    settings: str
    text: str
    seeds: tuple[int, ...]
    before: float
    after: Interval
    change: Interval
    gates: tuple[Interval, ...]
    closed_is_base: bool
    trained_parameters: int
    bytes: float
    seconds: float


def text_lines(runs: Sequence[tuple[str, Mapping[str, Any]]]) -> list[TextLine]:
    """A line for each corpus, adapter, settings and held-out text, of (settings, summary) of every run of objective=lm."""
    groups = _alike(runs, "corpus")
    return [_text_line(name, text, own) for name, own in groups.items() for text in texts(own[0])]


def texts(summary: Mapping[str, Any]) -> list[str]:
    """The names of the held-out texts in a summary; none of a run with an environment."""
    return [name for name, found in summary.items() if isinstance(found, dict) and "perplexity" in found]


def _text_line(name: tuple[str, str, str], text: str, own: list[Mapping[str, Any]]) -> TextLine:
    found = [summary[text] for summary in own]
    after = mean_interval([f["perplexity"]["adapted"] for f in found])
    change = mean_interval([f["nats"] for f in found]) if len(own) > 1 else Interval(found[0]["nats"], *found[0]["nats_ci95"])
    branches = zip(*([fmean(branch) for branch in zip(*f.get("gates", []), strict=True)] for f in found), strict=True)
    size, seconds = (fmean(s[key] for s in own) for key in ("expert_bytes", "seconds"))
    return TextLine(
        *name, text, tuple(s["seed"] for s in own), fmean(f["perplexity"]["base"] for f in found), after, change,
        tuple(mean_interval(branch) for branch in branches), all(f["closed_is_base"] for f in found),
        own[0]["trained_parameters"], size, seconds,
    )  # fmt: skip


def texts_to_markdown(found: Sequence[TextLine]) -> str:
    header = "corpus | adapter | held-out text | seeds | perplexity before | after [95 %] | change % [95 %]"
    header += " | gates: base, specialists [95 %] | closed gate is the base | trained numbers | bytes | seconds"
    rows = [f"| {header} |", "|---|---|---|---|" + "---:|" * 8]
    for line in found:
        cells = [line.corpus, f"{line.adapter} {line.settings}".strip(), line.text, ", ".join(map(str, line.seeds))]
        cells += [
            f"{line.before:.2f}",
            _ranged(line.after, "{:.2f}"),
            _ranged(line.change, "{:+.1f}", lambda x: 100 * math.expm1(x)),
        ]
        cells += [", ".join(_ranged(gate, "{:.2f}") for gate in line.gates), "yes" if line.closed_is_base else "NO"]
        cells += [str(line.trained_parameters), f"{line.bytes:.0f}", f"{line.seconds:.0f}"]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _ranged(interval: Interval, form: str, unit: Callable[[float], float] = float) -> str:
    """The value with its interval, if that is more than a point."""
    value, low, high = (form.format(unit(x)) for x in interval)
    return value if interval.low == interval.high else f"{value} [{low}, {high}]"


def compositions(found: Sequence[Mapping[str, Any]]) -> list[Figure]:
    """Test accuracies of mixtures over seeds: by task the one that was chosen, every expert, their uniform mixture and the base."""
    seeds: dict[int, list[dict[str, Any]]] = {}
    for one in found:
        shown = {name: value for name, value in one["test"].items() if name in (*one["experts"], "uniform", "base")}
        shown[FEWSHOT] = one["test"][one["chosen"]]
        seeds.setdefault(one["seed"], []).extend({"row": row, "column": one["env"], "value": v} for row, v in shown.items())
    return over_seeds([{"cells": cells} for cells in seeds.values()])


def forgetting(found: Sequence[Mapping[str, Any]]) -> list[Figure]:
    """The figures of svf_rl/evaluate/forgetting.py for each adapter, over seeds."""
    values: dict[tuple[str, str], list[float]] = {}
    for row, own in (entry for one in found for entry in one["adapters"].items()):
        for key in TRANSFER:
            values.setdefault((row, key), []).append(own[key])
    return [Figure(*place, len(own), *mean_interval(own)) for place, own in values.items() if len(own) == len(found) > 1]
