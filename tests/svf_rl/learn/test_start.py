"""Runs that begin at a trained adapter: what they start from, what they leave as it is, what they refuse."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from svf_rl.adapters import make_adapter, open_adapter, save_adapter
from svf_rl.attention.shiftable import NEW, ShiftableConfig
from svf_rl.base.load import Base
from svf_rl.base.texts import read_corpus, windows
from svf_rl.config import read_config
from svf_rl.files import read_tensors
from svf_rl.learn import language
from svf_rl.learn.start import start_at

FEW = "lm.steps=4 lm.rows=4 lm.length=16 lm.eval_every=2 lm.labelled_steps=2 lm.warmup=1 lm.learning_rate=0.05".split()


@pytest.fixture
def words(tmp_path: Path, architecture_folders: dict[str, Path]) -> list[str]:
    """A run that takes a moment: small corpora, a random base of two layers."""
    for name, text in {"ships": "sails to port", "birds": "sings song", "rocks": "weighs as much as"}.items():
        (tmp_path / f"{name}.txt").write_text("".join(f"{name} {i} {text} {i * i % 97}\n" for i in range(2500)))
    base = f"base={architecture_folders['llama']}"
    return ["train", "objective=lm", base, "base.device=cpu", "lm.general=birds.txt", *FEW]


@pytest.fixture
def trained(svf_rl: Callable[..., Any], words: list[str], tmp_path: Path) -> Path:
    """The folder of a run with one specialist."""
    assert svf_rl(*words, "adapter=shiftable", "corpus=ships.txt", "run_dir=first").code == 0
    return tmp_path / "first"


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return read_tensors(folder / "expert.safetensors")[0]


def test_only_added_specialists_train(svf_rl: Callable[..., Any], words: list[str], trained: Path, tmp_path: Path) -> None:
    more = ["adapter=shiftable", "adapter.specialists=3", "corpus=rocks.txt", f"lm.start={trained}", "run_dir=second"]
    done = svf_rl(*words, *more)
    assert done.code == 0, done.err
    old, now = tensors(trained), tensors(tmp_path / "second")
    last, _ = read_tensors(tmp_path / "second" / "checkpoint.safetensors")
    for name, tensor in old.items():
        assert torch.equal(now[name], tensor), name
        assert torch.equal(last[f"now.{name}"], tensor), name
    fresh = [name for name in now if name not in old]
    assert fresh
    assert all(".specialists.1." in name or ".specialists.2." in name for name in fresh)
    moved = {name.split(".specialists.")[1] for name in fresh if not torch.equal(last[f"now.{name}"], torch.zeros_like(now[name]))}
    assert moved >= {"1.query_up", "1.out_up", "1.gate", "1.gate_bias"}  # which are 0, or NEW, at first
    biases = [float(last[f"now.{name}"]) for name in fresh if name.endswith(".1.gate_bias")]
    assert all(0.001 < abs(bias) < 1 for bias in biases)  # opened for training, and moved


def test_the_run_compares_with_the_file_and_not_with_its_opened_gates(
    svf_rl: Callable[..., Any], words: list[str], trained: Path, tmp_path: Path, tiny_base: Base
) -> None:
    more = ["adapter=shiftable", "adapter.specialists=2", "corpus=rocks.txt", f"lm.start={trained}", "run_dir=second"]
    assert svf_rl(*words, *more).code == 0
    progress = json.loads(read_tensors(tmp_path / "second" / "checkpoint.safetensors")[1]["progress"])
    adapter, _ = open_adapter(trained / "expert.safetensors", tiny_base)
    valid = windows(read_corpus(str(tmp_path / "rocks.txt")), tiny_base.codec, 17, "valid")
    adapter.install()
    try:
        nats = language.held_out_nats(tiny_base, valid).mean().item()
    finally:
        adapter.uninstall()
    assert 1 / progress["base_valid"] == pytest.approx(
        math.exp(nats), rel=1e-3
    )  # the added one has a gate of 0.002, and is the base
    config = ShiftableConfig(specialists=2)
    begun = make_adapter(tiny_base, config)
    assert start_at(trained / "expert.safetensors", begun, config, tiny_base) == 1
    assert {float(t) for name, t in begun.state().items() if name.endswith(".1.gate_bias")} == {NEW}


def test_with_as_many_specialists_the_training_goes_on(
    svf_rl: Callable[..., Any], words: list[str], trained: Path, tmp_path: Path
) -> None:
    """The first perplexity of the second run is the last of the first: it starts where that one ended."""
    same = ["adapter=shiftable", "corpus=ships.txt", f"lm.start={trained / 'expert.safetensors'}", "run_dir=second"]
    assert svf_rl(*words, *same).code == 0
    progress = [read_tensors(folder / "checkpoint.safetensors")[1]["progress"] for folder in (trained, tmp_path / "second")]
    first, second = map(json.loads, progress)
    assert second["base_valid"] == pytest.approx(first["best"], rel=1e-6)
    assert first["best"] > first["base_valid"]
    now, _ = read_tensors(tmp_path / "second" / "checkpoint.safetensors")
    assert all(not torch.equal(now[f"now.{name}"], tensor) for name, tensor in tensors(trained).items())


def test_a_resumed_run_leaves_the_same_specialists(
    svf_rl: Callable[..., Any], words: list[str], trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the file it began with is no longer there: the checkpoint knows."""
    more = ["adapter=shiftable", "adapter.specialists=2", "corpus=rocks.txt", f"lm.start={trained}"]
    assert svf_rl(*words, *more, "run_dir=whole").code == 0
    save, calls = language.save_checkpoint, []

    def saving(*args: Any) -> None:
        save(*args)
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(language, "save_checkpoint", saving)
    assert svf_rl(*words, *more, "run_dir=parts").code == 130
    old = tensors(trained)
    trained.rename(tmp_path / "elsewhere")
    assert svf_rl(*words, *more, "run_dir=parts", "resume=true").code == 0
    whole, parts = (read_tensors(tmp_path / name / "checkpoint.safetensors")[0] for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert all(torch.equal(parts[f"now.{name}"], tensor) for name, tensor in old.items())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["adapter=lora"], "is of adapter=shiftable, this run has adapter=lora; give adapter=shiftable"),
        (["adapter=shiftable", "adapter.rank=4"], "was trained with adapter.rank=2, this run 4; give the file's settings"),
        (["adapter=shiftable", "adapter.specialists=1"], "has 2 specialists, this run 1, and none are removed"),
        (["adapter=shiftable", "lm.start=missing"], "cannot read the expert 'missing'"),
    ],
)
def test_mistakes(
    svf_rl: Callable[..., Any], words: list[str], tmp_path: Path, tiny_base: Base, more: list[str], message: str
) -> None:
    config = ShiftableConfig(specialists=2, rank=2)
    about = {
        "base": "tiny",
        "fingerprint": tiny_base.fingerprint,
        "environment": "lm:x",
        "command": "",
        "revision": "",
        "metrics": {},
    }
    save_adapter(tmp_path / "two.safetensors", make_adapter(tiny_base, config), config, about)
    rank = ["adapter.rank=2"] if "adapter=shiftable" in more and "adapter.rank=4" not in more else []
    done = svf_rl(*words, "corpus=ships.txt", "run_dir=run", "lm.start=two.safetensors", *rank, *more)
    assert message in done.mistake
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["svf", "lora", "gated"])
def test_every_kind_can_be_begun_at(tiny_base: Base, tmp_path: Path, name: str) -> None:
    config = read_config("train", [f"adapter={name}"]).adapter
    adapter = make_adapter(tiny_base, config)
    with torch.no_grad():
        for parameter in adapter.parameters().values():
            parameter.add_(0.1)
    about = {"base": "tiny", "fingerprint": tiny_base.fingerprint, "environment": "x", "command": "", "revision": "", "metrics": {}}
    save_adapter(tmp_path / "one.safetensors", adapter, config, about)
    second = make_adapter(tiny_base, config)
    assert start_at(tmp_path / "one.safetensors", second, config, tiny_base) == 0
    truth, _ = open_adapter(tmp_path / "one.safetensors", tiny_base)
    assert all(torch.equal(second.state()[key], tensor) for key, tensor in truth.state().items())
    assert all(torch.equal(second.state()[key], tensor) for key, tensor in adapter.state().items())
