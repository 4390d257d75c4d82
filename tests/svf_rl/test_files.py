"""A reader finds the old content or the new, whatever happens to the writer."""

import multiprocessing
import os
import random
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from svf_rl import files

OLD, NEW = b"old" * 1000, b"new" * 50_000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    target = tmp_path / "file.bin"
    files.write_bytes(target, OLD)
    return target


def only(path: Path) -> bytes:
    """The content of the one file in its folder."""
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    return path.read_bytes()


def test_replaces(path: Path) -> None:
    files.write_bytes(path, NEW)
    assert only(path) == NEW


def test_only_what_must_last_waits_for_the_disk(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[int] = []
    monkeypatch.setattr(os, "fsync", waited.append)
    files.write_bytes(path, NEW, durable=False)
    assert only(path) == NEW
    assert not waited
    files.write_bytes(path, OLD)
    assert len(waited) == 2  # for the file, and for the folder that names it


@pytest.mark.parametrize("step", ["fsync", "chmod", "replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_keeps_the_old(path: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: BaseException) -> None:
    def fail(*args: object) -> None:
        raise error

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(type(error)):
        files.write_bytes(path, NEW)
    assert only(path) == OLD


def start(code: str, **names: object) -> Any:
    """Run code in a process of its own, forked from one that has imported torch already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["svf_rl.files"])
    process = context.Process(target=exec, args=(f"from svf_rl import files\n{code}", names))
    process.start()
    return process


def test_a_full_disk_keeps_the_old(path: Path) -> None:
    """A limit on the file size fails the write itself, half-way, as a full disk does."""
    code = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))\n"
        "try: files.write_bytes(path, b'new' * 50_000)\n"
        "except OSError: sys.exit(7)"
    )
    writer = start(code, path=path)
    writer.join()
    assert writer.exitcode == 7
    assert only(path) == OLD


def test_an_unwritable_target(tmp_path: Path) -> None:
    folder = tmp_path / "target"
    folder.mkdir()
    with pytest.raises(OSError, match="target"):
        files.write_bytes(folder, NEW)
    with pytest.raises(FileNotFoundError):
        files.write_bytes(tmp_path / "missing" / "file", NEW)
    assert [p.name for p in tmp_path.iterdir()] == ["target"]


def test_kill_at_any_moment(path: Path) -> None:
    """kill -9 at random moments: one of the contents, whole, after each of them."""
    code = "i = 0\nwhile True: files.write_bytes(path, b'01'[i % 2 : i % 2 + 1] * (3_000_000 - 2_000_000 * (i % 2))); i += 1"
    rng, seen = random.Random(0), []
    for _ in range(20):
        writer = start(code, path=path)
        before = path.stat().st_ino
        while path.stat().st_ino == before:  # until its first file is there
            time.sleep(0.001)
        time.sleep(rng.random() * 0.03)
        writer.kill()
        writer.join()
        seen.append(path.read_bytes())
    assert set(seen) == {b"0" * 3_000_000, b"1" * 1_000_000}


def test_json_and_text(tmp_path: Path) -> None:
    files.write_json(tmp_path / "a.json", {"é": [1, None, 0.5]})
    assert (tmp_path / "a.json").read_bytes() == '{\n  "é": [\n    1,\n    null,\n    0.5\n  ]\n}\n'.encode()
    files.write_text(tmp_path / "a.txt", "é\n")
    assert (tmp_path / "a.txt").read_bytes() == b"\xc3\xa9\n"


def tensors() -> dict[str, torch.Tensor]:
    return {
        "step": torch.tensor(7),
        "transposed": torch.arange(6.0).view(2, 3).T,
        "half": torch.tensor([1.5, -0.0], dtype=torch.bfloat16),
        "empty": torch.zeros(0),
        "trained": torch.nn.Parameter(torch.ones(2)),
    }


def test_tensors_round_trip(tmp_path: Path) -> None:
    files.write_tensors(tmp_path / "t", tensors(), {"about": "x"})
    loaded, fields = files.read_tensors(tmp_path / "t")
    assert fields == {"about": "x"}
    assert loaded.keys() == tensors().keys()
    for name, tensor in tensors().items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor.detach())


def test_the_same_content_is_the_same_bytes(tmp_path: Path) -> None:
    about = {str(i): "é" for i in range(9)}
    for name in "abcd":
        files.write_tensors(tmp_path / name, tensors(), about)
    assert len({(tmp_path / name).read_bytes() for name in "abcd"}) == 1
    files.write_tensors(tmp_path / "e", dict(reversed(tensors().items())), dict(reversed(about.items())))
    assert (tmp_path / "e").read_bytes() == (tmp_path / "a").read_bytes()


def test_other_readers_read_it(tmp_path: Path) -> None:
    files.write_tensors(tmp_path / "t", tensors(), {"format": "pt"})
    assert load_file(tmp_path / "t").keys() == tensors().keys()
    with safe_open(tmp_path / "t", framework="numpy") as file:
        assert file.metadata()["format"] == "pt"
        assert file.get_tensor("transposed").tolist() == [[0, 3], [1, 4], [2, 5]]


def test_every_flipped_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "t"
    files.write_tensors(path, {"z": torch.tensor([1.0, 2.0])}, {"about": "x"})
    content = path.read_bytes()
    for position in range(len(content)):
        flipped = bytearray(content)
        flipped[position] ^= 1 << (position % 8)
        path.write_bytes(flipped)
        with pytest.raises(OSError, match=r".") as caught:
            files.read_tensors(path)
        assert "\n" not in str(caught.value)


def test_hash_tells_name_type_shape_and_value() -> None:
    z = torch.tensor([1.0, 2.0])
    variants = [{"a": z}, {"b": z}, {"a": z[None]}, {"a": z.bfloat16()}, {"a": z.flip(0)}, {"a": z, "b": z}, {}]
    hashes = [files.hash_tensors(v) for v in variants] + [files.hash_tensors({"a": z}, {"about": "x"})]
    assert len(set(hashes)) == len(hashes)
    assert files.hash_tensors({"a": z, "b": z.flip(0)}) == files.hash_tensors({"b": z.flip(0).clone(), "a": z.clone()})
