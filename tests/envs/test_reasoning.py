"""reasoning-gym's tasks: right answers, and answers that attack the scorer."""

import sys
import time

import pytest

pytest.importorskip("reasoning_gym")

from envs import isolated
from envs.reasoning import REFUSED, SHARES, reasoning
from envs.sandbox import Limits
from envs.sources import RowsError
from envs.text import split_of

EXECUTING = ["countdown", "polynomial_multiplication", "simple_integration", "n_queens", "string_insertion", "spiral_matrix"]
FORGED = 'exec("import builtins; builtins.min = lambda *a: 1.0")'
HOSTILE = [
    "__import__('os').system('touch /tmp/svf-rl-owned')",
    FORGED,
    "exec(chr(105) + chr(109))",
    "[c for c in ().__class__.__base__.__subclasses__()]",
    "9**9**9**9",
    "[0]*10**10",
    "factorial(10**9)",
    "(" * 100_000,
    "-" * 100_000 + "1",
    "1" * 300_000,
    "exit()",
    "lambda: 0",
    "\x00\ud800",
]


def test_a_puzzle_belongs_to_one_split_and_no_split_is_empty():
    task = reasoning("chain_sum")
    items = {split: [task.row(split, i) for i in range(20)] for split in SHARES}
    assert all(split_of(item.key, SHARES) == split for split, found in items.items() for item in found)
    prompts = [item.prompt for found in items.values() for item in found]
    assert len(set(prompts)) == len(prompts)


@pytest.fixture
def brisk(monkeypatch):
    monkeypatch.setattr(isolated, "SCORER_LIMITS", Limits(cpu_seconds=0.5, memory_mb=1024, wall_seconds=60.0))


@pytest.mark.parametrize("name", ["chain_sum", *EXECUTING])
def test_right_answers_earn_all(name):
    task = reasoning(name)
    for index in range(3):
        item = task.row("train", index)
        assert task.score(item, item.gold).reward == 1.0
        assert task.score(item, f"I think so.\nThe answer is{item.gold}" if "\n" not in item.gold else item.gold).reward > 0
        assert task.score(item, " I do not know.").reward < 0.5


@pytest.mark.parametrize("name", EXECUTING)
def test_hostile_answers_earn_nothing_and_are_bounded(name, brisk, tmp_path):
    task = reasoning(name)
    item = task.row("train", 0)
    for answer in HOSTILE:
        begun = time.process_time()
        assert task.score(item, answer).reward <= 0.05, answer[:60]
        assert time.process_time() - begun < 5  # of this process: what it costs is paid by the guest
    assert task.score(item, item.gold).reward == 1.0  # and the next answer is graded as ever


def test_an_answer_cannot_change_the_scorer_that_judges_it(brisk):
    """The same attack as Python: it works where an answer is executed."""
    from reasoning_gym import get_score_answer_fn

    namespace: dict = {}
    assert eval(FORGED, {"__builtins__": {"exec": lambda text: namespace.setdefault("ran", text)}}) in namespace.values()
    task = reasoning("string_insertion")
    item = task.row("train", 0)
    assert task.score(item, FORGED).reward == 0.0
    assert callable(get_score_answer_fn("string_insertion"))


def test_scorers_still_read_what_they_did():
    task = reasoning("string_insertion")
    item = task.row("train", 0)
    assert task.score(item, str(list(item.gold.strip()))).reward == 0.1  # a list of the characters
    task = reasoning("simple_integration")
    item = task.row("train", 0)
    assert task.score(item, f"({item.gold.replace('C', 'sqrt(9) + C')})").reward == 1.0


def test_an_answer_too_large_for_the_sandbox_earns_nothing(brisk):
    task = reasoning("chain_sum")
    assert task.score(task.row("train", 0), "7 " * 3_000_000).reward < 0.5


@pytest.mark.parametrize("name", REFUSED)
def test_tasks_whose_scorers_err_are_refused(name):
    with pytest.raises(RowsError, match=f"{name}' cannot be trained on: it"):
        reasoning(name)


def test_unknown_tasks_are_refused_with_the_known_ones(monkeypatch):
    with pytest.raises(RowsError, match=r"no task 'chain_summ'; it has .*chain_sum, "):
        reasoning("chain_summ")
    monkeypatch.setitem(sys.modules, "reasoning_gym.factory", None)
    with pytest.raises(RowsError, match="pip install 'svf-rl.reasoning-gym.'"):
        reasoning("chain_sum")
