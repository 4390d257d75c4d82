"""Checkpoints: what is written comes back bit for bit, what is not ours or not whole is refused by name, the old one survives."""

import errno
import os
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from svf_rl import files
from svf_rl.errors import UserError
from svf_rl.files import write_tensors
from svf_rl.learn.checkpoint import Progress, load_checkpoint, save_checkpoint


class State:
    """Two parameters and their AdamW after some steps."""

    def __init__(self, steps: int = 0, sizes: tuple[int, ...] = (5, 3)) -> None:
        generator = torch.Generator().manual_seed(7)
        self.trained = {f"m{i}": nn.Parameter(torch.rand(n, generator=generator)) for i, n in enumerate(sizes)}
        self.optimizer = torch.optim.AdamW(self.trained.values(), lr=0.1, weight_decay=0.0)
        self.best = {name: p.detach().clone() for name, p in self.trained.items()}
        for _ in range(steps):
            self.step()

    def step(self) -> None:
        sum((p.square() * torch.arange(1, len(p) + 1)).sum() for p in self.trained.values()).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def save(self, path: Path, progress: Progress | None = None) -> None:
        save_checkpoint(path, self.trained, self.best, self.optimizer, progress or Progress(step=3))

    def load(self, path: Path) -> tuple[Progress, dict[str, Tensor]]:
        return load_checkpoint(path, self.trained, self.optimizer)

    def bits(self) -> list[bytes]:
        moments = [v for p in self.trained.values() for _, v in sorted(self.optimizer.state.get(p, {}).items())]
        return [t.detach().numpy().tobytes() for t in [*self.trained.values(), *moments]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "checkpoint.safetensors"


def test_everything_comes_back_bit_for_bit(path: Path) -> None:
    saved, loaded = State(steps=4), State()
    progress = Progress(7, 0.1 + 0.2, 5, 1, 2, 3, 4, 1e-17, 1 / 3, "abc", [[1, 0.1], [2, float("inf")]])
    saved.save(path, progress)
    found, best = loaded.load(path)
    assert found == progress
    assert loaded.bits() == saved.bits()
    assert all(torch.equal(best[name], saved.best[name]) for name in saved.best)
    for state in (saved, loaded):
        state.step()
    assert loaded.bits() == saved.bits()  # the next step is the same step


def test_a_checkpoint_before_the_first_update_has_no_moments(path: Path) -> None:
    saved, loaded = State(), State()
    saved.save(path)
    loaded.load(path)
    for state in (saved, loaded):
        state.step()
    assert loaded.bits() == saved.bits()


def refused(state: State, path: Path) -> str:
    """The message that refuses `path`; parameters and moments must then be as they were."""
    before = state.bits()
    with pytest.raises(UserError) as caught:
        state.load(path)
    message = str(caught.value)
    assert repr(str(path)) in message
    assert "start again in another run_dir" in message
    assert "\n" not in message
    assert state.bits() == before
    return message


def test_a_cut_file_is_refused_wherever_it_is_cut(path: Path) -> None:
    State(steps=2).save(path)
    whole = path.read_bytes()
    for length in [0, 1, 7, 8, 9, *range(10, len(whole), 37), len(whole) - 1]:
        path.write_bytes(whole[:length])
        refused(State(steps=1), path)


def test_a_flipped_bit_is_refused_wherever_it_is(path: Path) -> None:
    State(steps=2).save(path)
    whole, rng = path.read_bytes(), random.Random(0)
    for position in [*range(0, len(whole), 23), len(whole) - 1]:
        broken = bytearray(whole)
        broken[position] ^= 1 << rng.randrange(8)
        path.write_bytes(broken)
        if broken[position] in b" \t\r\n" and whole[position] in b" \t\r\n":
            continue  # blank for blank, where the header is filled up
        refused(State(steps=1), path)


def test_a_missing_file_is_refused(path: Path) -> None:
    refused(State(steps=1), path)


def test_a_folder_is_refused(path: Path) -> None:
    path.mkdir()
    refused(State(steps=1), path)


def test_a_file_of_something_else_is_refused(path: Path) -> None:
    for content in (b"", b"not a checkpoint", b"\0" * 1000, b"\xff" * 1000):
        path.write_bytes(content)
        refused(State(steps=1), path)
    save_file({"now.m0": torch.ones(5)}, path)
    assert "svf-rl did not write" in refused(State(steps=1), path)
    write_tensors(path, {"z.m0": torch.ones(5)}, {"format": "svf-expert-1"})  # an expert of ours
    refused(State(steps=1), path)


def test_a_pickle_is_never_run(path: Path, tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, ...]]:
            return (os.mkdir, (str(tmp_path / "run"),))

    path.write_bytes(pickle.dumps({"now.m0": Payload()}))
    refused(State(steps=1), path)
    torch.save({"now.m0": torch.ones(5)}, path)
    refused(State(steps=1), path)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("sizes", [(5,), (5, 3, 2), (5, 4), (5, 1), (1, 3)])
def test_a_checkpoint_of_other_matrices_is_refused(sizes: tuple[int, ...], path: Path) -> None:
    """(5, 1) and (1, 3): a single value would be spread over a whole vector."""
    State(steps=2, sizes=sizes).save(path)
    assert "other matrices" in refused(State(steps=1), path)


def test_counters_of_another_version_are_refused(path: Path) -> None:
    state = State(steps=1)
    tensors = {f"{kind}.{name}": p.detach().clone() for kind in ("now", "best") for name, p in state.trained.items()}
    for progress in ('{"step": 3, "mood": 1}', "[]", "3", "{", "null"):
        write_tensors(path, tensors, {"progress": progress})
        refused(state, path)
    write_tensors(path, tensors, {})
    refused(state, path)


@pytest.mark.parametrize("call", ["fsync", "replace", "chmod"])
def test_a_write_that_fails_keeps_the_previous_checkpoint(call: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = State(steps=1), State(steps=2)
    old.save(path)

    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files.os, call, full)
        with pytest.raises(OSError, match="No space left"):
            new.save(path)
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # nothing half-written lies about
    reader = State()
    reader.load(path)
    assert reader.bits() == old.bits()
    new.save(path)
    reader.load(path)
    assert reader.bits() == new.bits()


def test_an_interruption_while_writing_keeps_the_previous_checkpoint(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = State(steps=1)
    old.save(path)

    def interrupted(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        State(steps=2).save(path)
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    reader = State()
    reader.load(path)
    assert reader.bits() == old.bits()
