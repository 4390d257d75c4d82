"""`svf-rl pretrain` hands its settings to the recipe and says where the base is."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from svf_rl.base.pretrain import PretrainConfig
from svf_rl.commands import pretrain


def test_settings_arrive_and_the_folder_is_named(svf_rl: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    got: list[PretrainConfig] = []

    def make(config: PretrainConfig, progress: Any) -> Path:
        got.append(config)
        return Path(config.run_dir)

    monkeypatch.setattr(pretrain, "pretrain", make)
    done = svf_rl("pretrain", "steps=3", "compile=false", "run_dir=here")
    assert (done.code, done.out) == (0, "the base is in here\n")
    assert got == [PretrainConfig(steps=3, compile=False, run_dir="here")]


def test_a_folder_that_cannot_be_made(svf_rl: Callable[..., Any]) -> None:
    Path("file").write_text("mine")
    assert svf_rl("pretrain", "run_dir=file/new").mistake.startswith("cannot write to the run folder 'file/new'")
    assert Path("file").read_text() == "mine"
