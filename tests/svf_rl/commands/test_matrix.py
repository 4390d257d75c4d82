"""The table on a random base: its figures, what it leaves, and that a second run is free."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from svf_rl.errors import UserError
from svf_rl.evaluate import cells
from svf_rl.evaluate.matrix import MatrixConfig

WORDS = ["columns=math", "dispatchers=[]", "size=6", "out=table"]


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"size": 0}, "size must be at least 1"),
    ({"samples": 2}, "greedy answers would all be the same"),
    ({"temperature": -1.0}, "temperature must be at least 0"),
    ({"temperature": 1.0, "samples": 2, "k": 3}, "pass@3 needs at least 3 samples"),
]


@pytest.mark.parametrize(("settings", "message"), WRONG)
def test_a_mistake_is_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        MatrixConfig(**settings)


def test_the_command_leaves_json_csv_and_markdown_and_goes_on(svf_rl: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    assert svf_rl("matrix", *WORDS).code == 0
    first = json.loads(Path("table/matrix.json").read_text())
    (cell,) = first["cells"]
    assert (cell["row"], cell["column"], cell["n"], first["base_unchanged"]) == ("base", "math", 6, True)
    assert "| base |" in Path("table/matrix.md").read_text()
    (line,) = csv.DictReader(Path("table/matrix.csv").read_text().splitlines())
    assert float(line["value"]) == cell["value"]
    monkeypatch.setattr(cells, "play", None)  # a second run that answered anything would fail
    assert svf_rl("matrix", *WORDS).code == 0
    assert json.loads(Path("table/matrix.json").read_text())["cells"] == first["cells"]


def test_unknown_names_are_mistakes(svf_rl: Callable[..., Any]) -> None:
    assert "unknown env 'mth'" in svf_rl("matrix", "columns=mth", "size=2").mistake
    assert "found none at 'nowhere'" in svf_rl("matrix", "experts=nowhere", "size=2").mistake
