"""`svf-rl experts`: one line for each file, the damaged ones included."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal on which no cell is folded."""
    monkeypatch.setenv("COLUMNS", "200")


@pytest.mark.usefixtures("wide")
def test_a_folder_is_listed(svf_rl: Callable[..., Any], save_expert_of: Callable[..., Path]) -> None:
    one = save_expert_of("one", base_accuracy=0.25, expert_accuracy=0.75)
    two = save_expert_of("two", 1, "toys:other")
    two.write_bytes(two.read_bytes()[:-5])
    done = svf_rl("experts", one.parent.parent)
    assert done.code == 0
    first, second = ([cell.strip() for cell in line.split("│")[1:-1]] for line in done.out.splitlines() if "KiB" in line)
    assert first == ["one", "tiny", "toys:toys/Letter-v0", "+50.0", f"{one.stat().st_size / 1024:.1f} KiB"]
    assert (second[0], second[3]) == ("two", "")
    assert "cannot read the expert" in second[2]


@pytest.mark.usefixtures("wide")
def test_one_file_and_none(svf_rl: Callable[..., Any], save_expert_of: Callable[..., Path]) -> None:
    assert "│ one" in svf_rl("experts", save_expert_of("one")).out
    assert svf_rl("experts", "nowhere").mistake.startswith("expected a folder of experts or an expert file, found no 'nowhere'")
