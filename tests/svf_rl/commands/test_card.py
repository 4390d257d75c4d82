"""The model card: the shipped one is what the command writes, and every command in it is understood."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from svf_rl.base.load import EMBEDDED
from svf_rl.commands import card
from svf_rl.config import read_configs
from svf_rl.evaluate.stats import Interval

ROW = re.compile(r"\| `(\w+)` \| ([\d.]+) % \[([\d.]+), ([\d.]+)\] \| ([\d.]+) % \[([\d.]+), ([\d.]+)\] \|")


def test_the_shipped_card_is_what_the_command_writes(
    svf_rl: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Given the shipped figures it writes the shipped text."""
    shipped = (EMBEDDED / "README.md").read_text()
    rows = {name: [float(x) / 100 for x in figures] for name, *figures in ROW.findall(shipped)}
    assert tuple(rows) == card.FAMILIES
    shutil.copy(EMBEDDED / "pretrain.json", tmp_path)
    monkeypatch.setattr(card, "EMBEDDED", tmp_path)
    monkeypatch.setattr(card, "_measure", lambda base, name, size: (Interval(*rows[name][:3]), Interval(*rows[name][3:])))
    size = re.search(r"n = (\d+)", shipped)
    assert size
    assert svf_rl("card", f"size={size[1]}").code == 0
    assert (tmp_path / "README.md").read_text() == shipped


def test_its_commands_are_understood() -> None:
    text = (EMBEDDED / "README.md").read_text().replace("<family>", "math")
    commands = re.findall(r"`svf-rl ([^`]+)`", text)
    assert {words.split()[0] for words in commands} == {"pretrain", "evaluate", "card"}
    for words in commands:
        command, *settings = words.split()
        assert read_configs(command, settings)
