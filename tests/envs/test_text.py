import random
from collections import Counter

import pytest

from envs.text import SPLITS, Generated, Item, Score, Unicode, split_of


def small_task(questions: int) -> Generated:
    """A task of a known number of questions."""

    def draw(rng: random.Random) -> Item:
        n = rng.randrange(questions)
        return Item(f"{n}?", f"{n}", f"key {n}")

    return Generated("small", draw, lambda item, text: Score(float(text == item.gold), "pass"), lambda item, rng: item.gold)


def test_splits_have_their_shares():
    counts = Counter(split_of(f"question {i}") for i in range(20_000))
    for split, share in SPLITS.items():
        assert counts[split] / 200 == pytest.approx(share, abs=1.5)
    assert sum(SPLITS.values()) == 100


def test_a_small_task_runs_out_with_a_clear_error_and_its_size_is_counted():
    from envs.text import TextEnv

    task = small_task(60)
    there = [i for i in range(60) if split_of(f"key {i}") == "train"]
    env = TextEnv(task)
    assert env.size("train", 1000) == len(there)
    assert {task.row("train", i).prompt for i in range(len(there))} == {f"{i}?" for i in there}
    with pytest.raises(IndexError, match=f"only {len(there)} distinct questions"):
        task.row("train", len(there))


def test_rows_do_not_depend_on_the_order_in_which_they_are_asked_for():
    first, second = small_task(10_000), small_task(10_000)
    assert first.row("test", 30) == second.row("test", 30)
    second.row("train", 10)
    assert [first.row("test", i) for i in range(40)] == [second.row("test", i) for i in range(40)]


def test_unknown_split_is_named():
    with pytest.raises(ValueError, match="pretrain, train, valid, test"):
        small_task(10).row("dev", 0)


def test_unicode_space_holds_any_text_up_to_its_length():
    space = Unicode(max_length=12, seed=3)
    assert "hello world!" in space
    assert "Zürich 東京\n" in space
    assert "hello worlds!" not in space
    assert 7 not in space
    assert all(Unicode(seed=3).sample() in Unicode() for _ in range(10))
