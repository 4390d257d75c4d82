"""Base against expert: the pairs belong together, whatever is lost."""

import re
from collections.abc import Callable
from typing import Any

import pytest

from svf_rl.base.load import Base
from svf_rl.errors import FaultyRun, UserError
from svf_rl.evaluate.compare import accuracy, answers, compare, right, show
from svf_rl.rollout.sampler import Sampling
from svf_rl.types import Episode


def answer(question: int, reward: float, text: str = "x") -> Episode:
    return Episode([1, 2], [False, True], [-0.1], reward, "", "stop", f"question {question}", text)


def some(rewards: str) -> list[Episode | None]:
    """ "1", "0" and "h"alf rewards by question; "-" was lost."""
    return [None if r == "-" else answer(i, {"1": 1.0, "0": 0.0, "h": 0.5}[r]) for i, r in enumerate(rewards)]


def test_pairs_stay_aligned_when_either_side_lost_an_answer() -> None:
    found = compare(some("01-0110-"), some("1-01101-"))
    assert [b.prompt for b in found.before] == [a.prompt for a in found.after] == [f"question {i}" for i in (0, 3, 4, 5, 6)]
    assert found.base.value == 2 / 5
    assert found.expert.value == 4 / 5
    assert found.difference.value == pytest.approx(2 / 5)


def test_accuracies_and_their_difference_are_of_the_same_questions() -> None:
    before, after = some("0" * 60 + "1" * 40), some("0" * 20 + "1" * 80)
    found = compare(before, after)
    assert (found.base.value, found.expert.value, found.difference.value) == (0.4, 0.8, 0.4)
    assert found.base[1:] == pytest.approx((0.3094, 0.4980), abs=1e-4)  # Wilson, 40 of 100
    assert found.expert[1:] == pytest.approx((0.7112, 0.8666), abs=1e-4)
    half = 1.9842170 * (0.4 * 0.6 / 99) ** 0.5
    assert found.difference[1:] == pytest.approx((0.4 - half, 0.4 + half), abs=1e-6)


def test_half_a_reward_is_no_right_answer() -> None:
    assert [right(e) for e in some("10h") if e] == [1.0, 0.0, 0.0]
    assert accuracy([e for e in some("10h1") if e]).value == 0.5


def test_nothing_to_compare_is_a_fault_and_no_zero() -> None:
    with pytest.raises(FaultyRun, match="no question of 3 was answered by both"):
        compare(some("1-1"), some("-1-"))


def test_both_sides_must_have_the_same_questions() -> None:
    with pytest.raises(ValueError, match="longer|shorter"):
        compare(some("111"), some("11"))


def test_answers_are_one_for_each_question_of_the_split(tiny_base: Base, toy_env: Callable[..., Any]) -> None:
    env = toy_env("Letter", rows=5)
    found = answers(tiny_base, env, "test", 3, Sampling(2, 0.0))
    assert [e.prompt for e in found if e] == ["test 0:", "test 1:", "test 2:"]
    assert len(answers(tiny_base, env, "test", 100, Sampling(2, 0.0))) == 5
    with pytest.raises(UserError, match="no question in the split"):
        answers(tiny_base, toy_env("Letter", rows=0), "test", 3, Sampling(2, 0.0))


def test_sampled_answers_depend_on_the_seed_alone(tiny_base: Base, toy_env: Callable[..., Any]) -> None:
    env = toy_env("Letter")
    first, again, other = ([e.ids for e in answers(tiny_base, env, "test", 6, Sampling(4), seed) if e] for seed in (1, 1, 2))
    assert first == again != other
    assert [e.ids for e in answers(tiny_base, env, "test", 2, Sampling(4), 10**30) if e]  # any whole number is a seed


def test_the_table_and_the_samples(capsys: pytest.CaptureFixture[str], toy_env: Callable[..., Any]) -> None:
    before = [answer(i, r, f"[b]old{i}[/b]") for i, r in enumerate([1.0, 0.0, 1.0, 0.0])]
    after = [answer(i, r, f"new{i}") for i, r in enumerate([1.0, 1.0, 1.0, 1.0])]
    show(compare(before, after), "a title", toy_env("Letter"), samples=2)
    printed = capsys.readouterr().out
    assert "a title" in printed
    rows = {name: re.search(rf"{name}\s.*", printed)[0] for name in ("base", "expert", "difference")}
    assert "50.0 %" in rows["base"]
    assert "100.0 %" in rows["expert"]
    assert "+50.0 %" in rows["difference"]
    assert all("4" in row for row in rows.values())
    assert "question 1" in printed  # those that the expert won come first
    assert "question 3" in printed
    assert "question 0" not in printed
    assert "'[b]old1[/b]'" in printed  # markup of an answer is text
