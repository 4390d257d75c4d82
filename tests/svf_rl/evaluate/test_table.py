"""Tables over seeds against means and intervals worked out here."""

import csv
import math
from typing import Any

import pytest
import scipy.stats

from svf_rl.evaluate.stats import proportion
from svf_rl.evaluate.table import compositions, forgetting, lines, text_lines, texts, texts_to_markdown, to_csv, to_markdown


def summary(seed: int, accuracy: float, env: str = "math", **more: Any) -> dict[str, Any]:
    facts = {
        "env": env,
        "adapter": "svf",
        "seed": seed,
        "base_accuracy": 0.5,
        "expert_accuracy": accuracy,
        "difference": accuracy - 0.5,
    }
    costs = {"difference_ci95": [0.1, 0.3], "n_test": 20, "trained_parameters": 7, "expert_bytes": 100, "seconds": 10.0 + seed}
    return {**facts, **costs, "peak_memory": 3 << 20, **more}


def t_interval(values: list[float]) -> Any:
    return pytest.approx([sum(values) / len(values), *scipy.stats.ttest_1samp(values, 0).confidence_interval()])


def test_runs_of_several_seeds_are_one_line_with_its_interval() -> None:
    accuracies = [0.7, 0.8, 0.75]
    (line,) = lines([("", summary(seed, accuracy)) for seed, accuracy in enumerate(accuracies)])
    assert (line.env, line.adapter, line.seeds, line.trained_parameters, line.peak_memory) == ("math", "svf", 3, 7, 3 << 20)
    assert list(line.accuracy) == t_interval(accuracies)
    assert list(line.gain) == t_interval([a - 0.5 for a in accuracies])
    assert line.seconds == pytest.approx(11.0)


def test_a_single_seed_has_the_interval_over_its_questions() -> None:
    run = summary(0, 0.7)
    del run["peak_memory"]  # as in runs of earlier versions
    (line,) = lines([("", run)])
    assert line.accuracy == proportion(14, 20)
    assert tuple(line.gain) == (pytest.approx(0.2), 0.1, 0.3)
    assert to_markdown([line]).splitlines()[-1] == (
        "| math | svf | 1 | 50.0 | 70.0 [48.1, 85.5] | +20.0 [+10.0, +30.0] | 7 | 100 | 10 |  |"
    )


def test_other_settings_are_other_lines_and_of_two_runs_alike_the_later_counts() -> None:
    runs = [("", summary(0, 0.7)), ("", summary(0, 0.9, "code")), ("algo.kl=0.0", summary(0, 0.8)), ("", summary(0, 0.6))]
    found = lines(runs)
    assert [(line.env, line.settings, line.seeds, line.accuracy.value) for line in found] == [
        ("math", "", 1, 0.6),
        ("math", "algo.kl=0.0", 1, 0.8),
        ("code", "", 1, 0.9),
    ]
    read = list(csv.DictReader(to_csv(found).splitlines()))
    assert [float(row["accuracy_value"]) for row in read] == [0.6, 0.8, 0.9]
    assert read[1]["settings"] == "algo.kl=0.0"


def lm_summary(seed: int, after: float, gates: list[list[float]] | None = None) -> dict[str, Any]:
    found = {
        "perplexity": {"base": 20.0, "closed": 20.0, "adapted": after},
        "nats": math.log(after / 20),
        "nats_ci95": [math.log(after / 20) - 0.1, math.log(after / 20) + 0.1],
        "closed_is_base": seed != 9,
        **({"gates": gates} if gates else {}),
    }
    costs = {"trained_parameters": 7, "expert_bytes": 100, "seconds": 10.0}
    return {"corpus": "notes", "adapter": "shiftable", "seed": seed, "special": found, "about": {"x": 1}, **costs}


def test_runs_on_text_over_seeds() -> None:
    gates = [[[0.2, 0.8], [0.4, 0.6]], [[0.1, 0.9], [0.3, 0.7]], [[0.0, 1.0], [0.2, 0.8]]]  # base 0.3, 0.2, 0.1
    afters = [10.0, 12.0, 11.0]
    runs = [("", lm_summary(seed, after, own)) for seed, (after, own) in enumerate(zip(afters, gates, strict=True))]
    assert texts(runs[0][1]) == ["special"]
    (line,) = text_lines(runs)
    assert (line.corpus, line.text, line.seeds, line.before, line.closed_is_base) == ("notes", "special", (0, 1, 2), 20.0, True)
    assert list(line.after) == t_interval(afters)
    assert list(line.change) == t_interval([math.log(after / 20) for after in afters])
    assert [list(gate) for gate in line.gates] == [t_interval([0.3, 0.2, 0.1]), t_interval([0.7, 0.8, 0.9])]
    assert not text_lines([*runs, ("", lm_summary(9, 10.0, gates[0]))])[0].closed_is_base


def test_a_single_run_on_text_has_the_interval_over_its_rows() -> None:
    (line,) = text_lines([("lm.steps=9", lm_summary(4, 10.0))])
    low, high = (100 * (0.5 * math.exp(x) - 1) for x in (-0.1, 0.1))
    assert texts_to_markdown([line]).splitlines()[-1] == (
        f"| notes | shiftable lm.steps=9 | special | 4 | 20.00 | 10.00 | -50.0 [{low:+.1f}, {high:+.1f}] |  | yes | 7 | 100 | 10 |"
    )


def test_compositions_by_task() -> None:
    found = [
        {
            "env": env,
            "seed": seed,
            "experts": ["a"],
            "chosen": f"search {seed}",
            "test": {"a": 0.5, "base": 0.1, f"search {seed}": x},
        }
        for env in ("new", "newer")
        for seed, x in enumerate((0.6, 0.7, 0.8))
    ]
    cells = {(f.row, f.column): f for f in compositions(found)}
    assert cells.keys() == {(row, env) for row in ("a", "base", "few-shot") for env in ("new", "newer")}
    f = cells["few-shot", "new"]
    assert [f.value, f.low, f.high] == t_interval([0.6, 0.7, 0.8])
    assert f.n == 3
    assert compositions(found[:1]) == []


def test_forgetting_by_adapter() -> None:
    keys = ("average_accuracy", "backward_transfer", "forgetting", "forward_transfer")
    found = [{"adapters": {"lora": dict.fromkeys(keys, x)}} for x in (0.1, 0.2)]
    assert {f.column: round(f.value, 6) for f in forgetting(found)} == dict.fromkeys(keys, 0.15)
