"""Rows in the official format, written for this test; the official file is not needed."""

import gzip
import json

import pytest

from envs.humaneval import humaneval
from envs.sources import RowsError

HALF = {
    "task_id": "Own/0",
    "prompt": 'def half(n: int) -> float:\n    """ Half of n.\n    >>> half(3)\n    1.5\n    """\n',
    "entry_point": "half",
    "canonical_solution": "    return n / 2\n",
    "test": "\n\nMETADATA = {'author': 'me'}\n\n\ndef check(candidate):\n"
    "    assert candidate(3) == 1.5\n    assert candidate(0) == 0\n\n",
}
ROOT = {  # the assertions use a helper of the prompt, in a loop
    "task_id": "Own/1",
    "prompt": 'def square(x):\n    return x * x\n\n\ndef root(x):\n    """ The number whose square is x."""\n',
    "entry_point": "root",
    "canonical_solution": "    return x ** 0.5\n",
    "test": "def check(candidate):\n    for n in range(1, 9):\n        assert abs(square(candidate(n)) - n) < 1e-9\n",
}


def task(tmp_path, *rows, **settings):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    return humaneval({"test": str(tmp_path / "a.jsonl.gz")}, **settings)


@pytest.mark.parametrize("row", [HALF, ROOT])
def test_canonical_solutions_earn_all_and_others_less(tmp_path, row):
    made = task(tmp_path, row)
    item = made.row("test", 0)
    assert (item.prompt, item.gold) == (row["prompt"], row["canonical_solution"])
    assert made.score(item, item.gold).reward == 1.0
    assert made.score(item, f"```python\n{item.prompt}{item.gold}```").reward == 1.0
    for wrong in ("", "    pass\n", "    return 7\n", "    return candidate\n", "```python\n```"):
        assert made.score(item, wrong).reward == 0.0, wrong


def test_share_and_all(tmp_path):
    half_right = "    return 0\n"
    assert task(tmp_path, HALF).score(task(tmp_path, HALF).row("test", 0), half_right).info == {"share": 0.5, "solved": 0.0}
    made = task(tmp_path, HALF, reward="share")
    assert made.score(made.row("test", 0), half_right).reward == 0.5
    with pytest.raises(RowsError, match="reward must be one of share, all"):
        task(tmp_path, HALF, reward="some")


def test_rows_that_lack_something_are_left_out(tmp_path):
    made = task(tmp_path, HALF, {**ROOT, "entry_point": None}, {**ROOT, "test": ""}, {**ROOT, "test": "#" * (2 << 20)})
    assert made.size("test") == 1
    assert sum(s.count for s in made.skipped.values()) == 3


def test_assertions_that_do_not_load_are_the_datas_fault(tmp_path):
    bad = {**HALF, "prompt": "# Other.\n" + HALF["prompt"], "test": "def check(candidate):\n    assert ("}
    made = task(tmp_path, bad, check=False)
    with pytest.raises(ValueError, match="do not parse"):
        made.score(made.row("test", 0), "    pass\n")
    made = task(tmp_path, HALF, bad)
    assert made.size("test") == made.skipped["a reference program that does not pass its own assertions here"].count == 1
