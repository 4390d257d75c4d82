"""`svf-rl table` on runs that were trained here: what it prints and writes."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

FEW = "algo.steps=1 algo.prompts=2 algo.group=2 valid_size=4 test_size=8".split()


@pytest.fixture
def letter(architecture_folders: dict[str, Path]) -> list[str]:
    env = ["env=math", "env.id=toys:toys/Letter-v0", "env.name=letter", "env.max_tokens=3"]
    return ["train", f"base={architecture_folders['llama']}", *env, *FEW]


def test_runs_become_a_line_for_each_adapter_and_settings(svf_rl: Callable[..., Any], letter: list[str]) -> None:
    assert svf_rl(*letter, "seed=0,1", "run_dir=runs/plain").code == 0
    assert svf_rl(*letter, "algo.kl=0", "run_dir=runs/free").code == 0
    done = svf_rl("table", "out=found")
    assert done.code == 0
    read = list(csv.DictReader(Path("found.csv").read_text().splitlines()))
    by_kl = {("algo.kl=0.0" in row["settings"].split()): row for row in read}
    assert (len(read), by_kl[False]["seeds"], by_kl[True]["seeds"]) == (2, "2", "1")
    assert all({"algo.steps=1", "test_size=8"} <= set(row["settings"].split()) for row in read)
    assert not any("seed=" in row["settings"] or "run_dir" in row["settings"] for row in read)
    own = [json.loads(Path(f"runs/plain/seed{seed}/summary.json").read_text()) for seed in (0, 1)]
    assert float(by_kl[False]["accuracy_value"]) == pytest.approx(sum(s["expert_accuracy"] for s in own) / 2)
    assert Path("found.md").read_text().strip() in done.out
    assert len(json.loads(Path("found.json").read_text())["runs"]) == 2


def test_matrices_compositions_and_forgetting_of_two_seeds(svf_rl: Callable[..., Any]) -> None:
    for seed, x in enumerate((0.25, 0.75)):
        folder = Path("runs", str(seed))
        folder.mkdir(parents=True)
        cells = [{"row": "base", "column": "math", "value": x}]
        composed = {"env": "new", "seed": seed, "experts": ["a"], "chosen": "a", "test": {"a": x}}
        keys = ("average_accuracy", "backward_transfer", "forgetting", "forward_transfer")
        (folder / "matrix.json").write_text(json.dumps({"cells": cells}))
        (folder / "composition.json").write_text(json.dumps(composed))
        (folder / "forgetting.json").write_text(json.dumps({"adapters": {"svf": dict.fromkeys(keys, x)}}))
    lines = svf_rl("table").out.splitlines()
    starts = [line[: line.index("[")] for line in lines if "[" in line]
    assert starts == ["| base | 50.0 ", "| a | 50.0 ", "| few-shot | 50.0 ", "| svf | 50.0 "]


def test_nothing_to_tabulate(svf_rl: Callable[..., Any]) -> None:
    assert svf_rl("table").mistake.startswith("found no run in 'runs', nor a matrix or the like of two seeds")
    Path("runs").mkdir()
    Path("runs/summary.json").write_text("{")
    assert svf_rl("table").mistake.startswith("cannot read ")
