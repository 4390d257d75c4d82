"""Tables over seeds: what adapters reach, cost and weigh, and the means of matrices, compositions and forgetting.

Of several seeds the mean and its t interval over seeds; of one seed the interval over its questions. Of two runs that are alike the
later counts.
"""

import csv
import io
from collections.abc import Mapping, Sequence
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
    groups: dict[tuple[str, str, str], dict[int, Mapping[str, Any]]] = {}
    for settings, summary in runs:
        groups.setdefault((summary["env"], summary["adapter"], settings), {})[summary["seed"]] = summary
    found = [_line(name, list(own.values())) for name, own in groups.items()]
    environments = list(dict.fromkeys(line.env for line in found))
    return sorted(found, key=lambda line: environments.index(line.env))


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
