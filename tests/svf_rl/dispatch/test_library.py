"""Folders and lists of experts; what is refused."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from svf_rl.base.load import Base
from svf_rl.dispatch.library import find_experts, label, open_library, specialists
from svf_rl.errors import ExpertError
from svf_rl.files import write_tensors
from svf_rl.svf.adapter import SVFAdapter
from svf_rl.types import Expert


@pytest.fixture
def base(tiny_base: Base) -> Base:
    return tiny_base


def test_a_folder_and_a_list_give_the_same_names(shelf: Callable[..., Path], draw: Callable[..., Expert]) -> None:
    folder = shelf(one=draw(0), two=draw(1))
    write_tensors(folder / "one" / "checkpoint.safetensors", {"x": draw(0).z[next(iter(draw(0).z))]})
    assert list(find_experts(str(folder))) == ["one", "two"]
    assert find_experts(f"[{folder}/two, {folder}/one/expert.safetensors]") == find_experts(str(folder))
    shutil.rmtree(folder / "one")
    assert list(find_experts(str(folder))) == ["two"]


@pytest.mark.parametrize("where", ["", "[]", "missing", "[missing]"])
def test_no_experts_is_an_error(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ExpertError, match=r"no experts found|found no 'missing'"):
        find_experts(where)


def test_experts_of_another_base_are_taken_only_on_request(
    base: Base, adapter: SVFAdapter, shelf: Callable[..., Path], draw: Callable[..., Expert]
) -> None:
    folder = str(shelf(one=draw(0), two=draw(1, fingerprint="0" * 32)))
    adapter.uninstall()
    with pytest.raises(ExpertError, match="two: this expert was trained on the base 'tiny' .*allow_other_base=true"):
        open_library(folder, base)
    library, _ = open_library(folder, base, allow_other_base=True)
    assert list(library) == ["one", "two"]


def test_those_that_answer(draw: Callable[..., Expert]) -> None:
    router, weak = draw(0, env="envs:svf/WhichTask-v0"), draw(1, env="envs:svf/HardMath-v0", accuracy=0.2)
    strong, other = draw(2, env="envs:svf/HardMath-v0", accuracy=0.9), draw(3, env="envs:svf/Topic-v0")
    library = {"a": router, "b": weak, "c": strong, "d": other}
    assert list(specialists(library)) == ["c", "d"]
    assert [label(e) for e in library.values()] == ["which task", "hard math", "hard math", "topic"]
