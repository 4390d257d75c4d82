"""`svf-rl study` on a stand-in for a study: what it prints and leaves, and that a part which is done is not done again."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from svf_rl.commands.study import show
from svf_rl.studies import table
from svf_rl.studies.parts import part


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A study of two parts in place of the first one; the list says which parts were computed."""
    made: list[int] = []

    def make(seed: int) -> dict[str, Any]:
        made.append(seed)
        if len(made) == 2:
            raise KeyboardInterrupt
        return {"seed": seed, "score": seed / 3}

    def run(settings: Any, folder: Path, progress: Any) -> dict[str, Any]:
        return {"table": [part(folder, f"seed{seed}", {"steps": settings.steps}, lambda s=seed: make(s)) for seed in (0, 1)]}

    monkeypatch.setitem(table.STUDIES, "superposition", run)
    return made


def test_a_study_goes_on_where_it_was_stopped_and_leaves_its_table(svf_rl: Callable[..., Any], made: list[int]) -> None:
    assert svf_rl("study", "name=superposition", "out=here").code == 130
    assert not Path("here/results.json").exists()
    done = svf_rl("study", "name=superposition", "out=here")
    assert (done.code, made) == (0, [0, 1, 1])
    assert "0.3333" in done.out
    found = json.loads(Path("here/results.json").read_text())
    assert found["table"] == [{"seed": 0, "score": 0.0}, {"seed": 1, "score": 1 / 3}]
    assert (found["command"], found["settings"]["seeds"]) == ("svf-rl study name=superposition out=here", 5)
    assert [row["seed"] for row in csv.DictReader(Path("here/results.csv").read_text().splitlines())] == ["0", "1"]
    assert "made with another steps" in svf_rl("study", "superposition.steps=7", "out=here").mistake
    Path("here/seed0.json").write_text("{")
    assert "cannot read 'here/seed0.json'" in svf_rl("study", "out=here").mistake


def test_without_out_the_folder_has_the_name_of_the_study(svf_rl: Callable[..., Any], made: list[int]) -> None:
    made.append(-1)
    made.append(-1)
    assert svf_rl("study").code == 0
    assert Path("runs/study/superposition/results.json").exists()


def test_a_mistake_is_one_line(svf_rl: Callable[..., Any]) -> None:
    assert svf_rl("study", "name=superpositon").mistake.startswith("unknown study 'superpositon'; did you mean superposition")
    assert "expected superposition.heads among [2, 3, 4]" in svf_rl("study", "superposition.heads=[5]").mistake


def test_a_table_wider_than_the_terminal_is_not_cut(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    row = {f"column_{i}": value for i, value in enumerate([1 / 3, None, "a text of some length"] * 5)}
    show("wide", [row])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "0.3333" in line]
    assert (line.count("0.3333"), line.count(" - "), line.count("a text of some length")) == (5, 5, 5)
