"""What rows are called, what they are made of, and which prompts go where."""

from collections.abc import Callable
from pathlib import Path

import pytest

from svf_rl.base.load import Base
from svf_rl.errors import ExpertError, UserError
from svf_rl.evaluate.rows import base_row, composed_rows, file_row, find_files
from svf_rl.progress import Progress

QUIET = Progress(quiet=True)


def test_names_are_those_of_folders(save_expert_of: Callable[..., Path]) -> None:
    one, two = save_expert_of("one"), save_expert_of("deep/two", 1)
    shelf = one.parent.parent
    assert find_files(str(shelf)) == {"one": one, "deep/two": two}
    assert find_files(str(one.parent)) == find_files(str(one)) == {"one": one}
    assert find_files(f"[{one}, {two.parent}]") == {"one": one, "two": two}
    renamed = one.rename(shelf / "mine.safetensors")
    assert find_files(str(renamed)) == {"mine": renamed}


def test_files_that_are_missing_or_of_one_name_are_mistakes(save_expert_of: Callable[..., Path], tmp_path: Path) -> None:
    one, other = save_expert_of("one"), save_expert_of("deep/one", 1)
    with pytest.raises(ExpertError, match="two experts are named 'one'"):
        find_files(f"[{one},{other}]")
    with pytest.raises(ExpertError, match="found none at"):
        find_files(str(tmp_path / "nowhere"))


def test_a_file_says_what_it_was_trained_on_and_to_what_effect(tiny_base: Base, save_expert_of: Callable[..., Path]) -> None:
    row = file_row("x", save_expert_of("one", environment="toys:a", valid_gain=0.25), tiny_base)
    assert (row.name, row.environment, row.gain) == ("x", "toys:a", 0.25)
    older = file_row("x", save_expert_of("two", environment="toys:a"), tiny_base)
    assert older.gain < -1
    assert older.digest != row.digest
    (part,) = row.route(["a", "b"])
    assert (part.indices, part.label) == ([0, 1], "x")


def test_what_is_composed_of_files(tiny_base: Base, save_expert_of: Callable[..., Path]) -> None:
    files = {name: save_expert_of(name, seed, f"toys:{name}") for seed, name in enumerate(("one", "two"))}
    assert [row.name for row in composed_rows(files, tiny_base, ["probe", "classifier"], QUIET)] == ["uniform", "probe"]
    assert composed_rows({"one": files["one"]}, tiny_base, ["probe"], QUIET) == []
    with pytest.raises(UserError, match="unknown dispatcher 'prob'; expected some of prompt, probe, classifier"):
        composed_rows(files, tiny_base, ["prob"], QUIET)
    same = {"one": files["one"], "again": save_expert_of("again", 2, "toys:one")}
    assert composed_rows(same, tiny_base, [], QUIET) == []  # one environment, so one expert answers: nothing to mix


def test_the_base_row_is_every_prompt_under_nothing() -> None:
    (part,) = base_row().route(["a", "b", "c"])
    assert (part.indices, part.label) == ([0, 1, 2], "base")
