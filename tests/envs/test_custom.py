"""The user's own rows and rewards."""

import json
import sys

import pytest

from envs import isolated
from envs.custom import RewardFault, rows
from envs.sources import RowsError

CAPITAL = {"question": "What is the capital of Norway?", "answer": "Oslo"}


def task(tmp_path, *given, **settings):
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, given or [CAPITAL])))
    return rows({"test": str(tmp_path / "a.jsonl")}, **settings)


def rewards(made, *completions):
    return [made.score(made.row("test", 0), completion).reward for completion in completions]


def test_the_default_prompt_and_exact_answers(tmp_path):
    made = task(tmp_path)
    assert made.row("test", 0).prompt == "What is the capital of Norway?\nAnswer:"
    assert rewards(made, "Oslo", " Oslo\n", "oslo", "Oslo.", "It is Oslo", "") == [1, 1, 0, 0, 0, 0]


def test_contains_whole_words(tmp_path):
    made = task(tmp_path, reward="contains")
    assert rewards(made, "It is OSLO, of course", "Oslo", "Oslofjord", "", "Bergen") == [1, 1, 0, 0, 0]
    odd = task(tmp_path, {"question": "q", "answer": "C++ (new)"}, reward="contains")
    assert rewards(odd, "I like c++ \n (new).", "C++") == [1, 0]


def test_numbers(tmp_path):
    made = task(tmp_path, {"question": "q", "answer": "So 1+1=2 and\n#### 1,200"}, reward="numeric")
    assert made.row("test", 0).gold == "1200"
    assert rewards(made, "The answer is 1200.", "1,200.0", "it is 1200 or 3", "", "#### 12") == [1, 1, 0, 0, 0]
    assert (
        task(tmp_path, CAPITAL, {"question": "n", "answer": 7}, reward="numeric").skipped["an answer without a number"].count == 1
    )


def test_mathematics(tmp_path):
    made = task(tmp_path, {"problem": "Find it.", "solution": r"We get \boxed{\frac{\sqrt{3}}{2}}."}, **MATH)
    assert made.row("test", 0).gold == r"\frac{\sqrt{3}}{2}"
    assert rewards(made, r"\boxed{\frac{\sqrt{3}}{2}}", r"so $\frac12\sqrt3$", r"\boxed{\sqrt{3}}", "", r"\boxed{9^{9^9}!}") == [
        1,
        1,
        0,
        0,
        0,
    ]


MATH = {"reward": "math", "template": "{problem}", "answer": "solution"}


def test_regular_expressions(tmp_path):
    given = {"question": "When?", "answer": r"\b(1814|the year of Eidsvoll)\b", "example": "In 1814."}
    made = task(tmp_path, given, {"question": "bad", "answer": "("}, reward="regex", gold="example")
    item = made.row("test", 0)
    assert made.score(item, item.gold).reward == 1.0
    assert rewards(made, "It was 1814", "18140", "") == [1, 0, 0]
    assert next(iter(made.skipped)).startswith("no regular expression")


def test_slow_patterns_are_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(isolated, "LIBRARY_LIMITS", isolated.Limits(cpu_seconds=0.3, memory_mb=256, wall_seconds=60.0))
    made = task(tmp_path, {"question": "q", "answer": r"^(a+)+$"}, reward="regex", gold="question")
    assert rewards(made, "a" * 60 + "b") == [0]


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module of the user's in the current folder."""
    (tmp_path / "my_rewards.py").write_text(
        "def length(completion, row): return min(1.0, len(completion) / row['n'])\n"
        "def right(completion, row): return completion.strip() == 'yes'\n"
        "def broken(completion, row): return row['missing']\n"
        "def big(completion, row): return 7\n"
        "def words(completion, row): return 'good'\n"
        "def nan(completion, row): return float('nan')\n"
        "number = 3\n"
    )
    (tmp_path / "broken_module.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    yield {"question": "q", "n": 4, "answer": "yes"}
    for name in ("my_rewards", "broken_module"):
        sys.modules.pop(name, None)


def test_a_function_of_ones_own(tmp_path, own):
    assert rewards(task(tmp_path, own, reward="python:my_rewards:length"), "", "ab", "abcdefgh") == [0, 0.5, 1]
    made = task(tmp_path, own, reward="python:my_rewards:right")
    assert rewards(made, " yes", "no", made.row("test", 0).gold) == [1, 0, 1]
    assert made.score(made.row("test", 0), "yes").verdict == "pass"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("broken", "my_rewards:broken raised KeyError"),
        ("big", r"returned 7\.0; expected a number from 0 to 1"),
        ("nan", "returned nan"),
        ("words", "raised ValueError"),
    ],
)
def test_what_fails_there_is_a_fault_and_no_zero(tmp_path, own, name, message):
    made = task(tmp_path, own, reward=f"python:my_rewards:{name}")
    with pytest.raises(RewardFault, match=message):
        rewards(made, "yes")


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        ("python:my_rewards", "expected python:MODULE:FUNCTION"),
        ("python:my_rewards:nothing", "cannot import nothing from my_rewards: AttributeError"),
        ("python:no_such_module:f", "ModuleNotFoundError"),
        ("python:broken_module:f", "ZeroDivisionError"),
        ("python:my_rewards:number", "is no function but a int"),
        ("nearly", "reward must be one of exact, contains, numeric, math, regex or python:MODULE:FUNCTION, not 'nearly'"),
    ],
)
def test_rewards_that_are_none_are_refused_at_once(tmp_path, own, reward, message):
    with pytest.raises(RowsError, match=message):
        task(tmp_path, own, reward=reward)


def test_columns_and_template_are_the_users(tmp_path):
    made = task(tmp_path, {"body": "It is broken", "team": "repair"}, template="Ticket: {body}\nTeam:", answer="team")
    assert made.row("test", 0).prompt == "Ticket: It is broken\nTeam:"
    with pytest.raises(RowsError, match="nothing in column 'body' of the template.* Columns: question, answer"):
        task(tmp_path, template="{body}")
    with pytest.raises(RowsError, match="no column 'team'"):
        task(tmp_path, answer="team")
