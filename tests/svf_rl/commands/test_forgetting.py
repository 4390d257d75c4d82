"""`svf-rl forgetting` with a learner that adds a constant: where each task starts, what stays, what is written."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from svf_rl.base.load import Base, fingerprint
from svf_rl.commands import forgetting
from svf_rl.config import read_config
from svf_rl.errors import UserError
from svf_rl.evaluate.forgetting import ForgettingConfig, transfer
from svf_rl.learn import trainer

STEP = 0.05


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Tensor]]:
    """The state that each task began with, by folder. What is learnt is STEP, added to every number."""
    seen: dict[str, dict[str, Tensor]] = {}

    def train(run: trainer.Run) -> None:
        seen[f"{run.folder.parent.name}/{run.folder.name}"] = run.adapter.state()
        run.best = {name: tensor + STEP for name, tensor in run.adapter.state().items()}

    monkeypatch.setattr(trainer, "train", train)
    return seen


@pytest.fixture
def words(architecture_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two toy tasks on a random base."""

    def read(command: str, words: list[str]) -> Any:
        name = words[0].removeprefix("env=")
        toy = ["env=math", f"env.id=toys:toys/{name.title()}-v0", f"env.name={name}", "env.max_tokens=3"]
        return read_config(command, [*toy, *words[1:]] if name in ("letter", "plain") else words)

    monkeypatch.setattr(forgetting, "read_config", read)
    adapters = ["adapters=[lora,svf]", "learning_rates=[0.001,0.01]"]
    return ["forgetting", f"base={architecture_folders['llama']}", "tasks=[letter,plain]", *adapters, "size=4", "out=found"]


def test_adapters_go_on_and_experts_start_anew(
    svf_rl: Callable[..., Any], words: list[str], starts: dict[str, dict[str, Tensor]], tiny_base: Base
) -> None:
    done = svf_rl(*words)
    assert done.code == 0
    first, second = starts["lora/1-letter"], starts["lora/2-plain"]
    assert all(torch.equal(second[name], first[name] + STEP) for name in first)
    assert all(bool((z == 1).all()) for task in ("svf/1-letter", "svf/2-plain") for z in starts[task].values())
    found = json.loads(Path("found/forgetting.json").read_text())
    assert (found["tasks"], found["base_unchanged"], found["answers_equal"]) == (["letter", "plain"], True, True)
    assert fingerprint(tiny_base.model) == tiny_base.fingerprint
    for own in found["adapters"].values():
        assert len(own["accuracy"]) == 3
        assert own["forgetting"] == transfer(own["accuracy"]).forgetting
    assert "base tensors hash equal: True; the base's answers byte-equal: True" in done.out
    assert Path("found/forgetting.md").read_text().count("|") == 4 * 6
    starts.clear()
    before = Path("found/forgetting.json").read_bytes()
    assert svf_rl(*words).code == 0
    assert not starts  # what was learnt is not learnt again
    assert Path("found/forgetting.json").read_bytes() == before


def test_a_task_that_was_interrupted_is_learnt_from_the_same_start(
    svf_rl: Callable[..., Any], words: list[str], starts: dict[str, dict[str, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    only = [word for word in words if not word.startswith(("adapters", "learning"))] + ["adapters=[lora]", "learning_rates=[0.001]"]
    learnt = trainer.train

    def interrupted(run: trainer.Run) -> None:
        learnt(run)
        if run.folder.name == "2-plain":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "train", interrupted)
        assert svf_rl(*only).code == 130
    assert not Path("found/forgetting.json").exists()
    again = dict(starts)
    starts.clear()
    assert svf_rl(*only).code == 0
    assert starts.keys() == {"lora/2-plain"}
    assert all(torch.equal(tensor, again["lora/2-plain"][name]) for name, tensor in starts["lora/2-plain"].items())


def test_mistakes(svf_rl: Callable[..., Any], words: list[str]) -> None:
    assert svf_rl(*words, "tasks=[letter]").mistake.startswith("forgetting needs at least two tasks")
    assert svf_rl(*words, "learning_rates=[0.1]").mistake == "expected one learning rate for each of lora, svf, found '[0.1]'"
    assert svf_rl(*words, "tasks=[letter,mth]").mistake.startswith("unknown env 'mth'")
    with pytest.raises(UserError, match="steps must be at least 1"):
        ForgettingConfig(steps=0)


def test_the_learning_rates_are_those_of_the_experiments() -> None:
    for name, rate in forgetting.adapters(ForgettingConfig()).items():
        words = [f"experiment={name}"] if name != "svf" else []
        assert read_config("train", words).algo.learning_rate == rate
