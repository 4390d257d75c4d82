"""`svf-rl pretrain` hands its settings to the recipe and says where the base is."""

import json
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


def test_two_commands_make_a_base_and_a_specialist_on_it(svf_rl: Callable[..., Any], tmp_path: Path) -> None:
    """The base is trained on one text, the specialist on another, and of both held-out text is tested."""
    (tmp_path / "birds.txt").write_text("".join(f"bird {i} sings song {i * 7 % 31} at dawn\n" for i in range(2000)))
    (tmp_path / "sums.txt").write_text("".join(f"{i} + {i * i % 71} = {i + i * i % 71};\n" for i in range(3000)))
    shape = "vocab_size=300 hidden_size=32 layers=2 heads=2 feed_forward=48 context=64 length=16 rows=8 compile=false".split()
    first = svf_rl("pretrain", "corpus=birds.txt", "steps=60", "warmup=5", "run_dir=birds", *shape)
    assert (first.code, first.out) == (0, "the base is in birds\n")
    lm = "lm.general=birds.txt lm.steps=40 lm.rows=8 lm.length=16 lm.labelled_steps=40 lm.eval_every=20 lm.learning_rate=0.03"
    words = ["base=hf", "base.path=birds", "base.device=cpu", "objective=lm", "adapter=shiftable", "corpus=sums.txt", "run_dir=run"]
    second = svf_rl("train", *words, *lm.split())
    assert second.code == 0, second.err
    summary = json.loads(Path("run/summary.json").read_text())
    special, general = summary["special"], summary["general"]
    assert special["perplexity"]["adapted"] < 0.9 * special["perplexity"]["base"]
    assert general["perplexity"]["closed"] == general["perplexity"]["base"] < special["perplexity"]["base"]
    own, other = (sum(layer[1] for layer in text["gates"]) for text in (special, general))
    assert own > other


def test_a_folder_that_cannot_be_made(svf_rl: Callable[..., Any]) -> None:
    Path("file").write_text("mine")
    assert svf_rl("pretrain", "run_dir=file/new").mistake.startswith("cannot write to the run folder 'file/new'")
    assert Path("file").read_text() == "mine"
