"""Rows in the formats of both official files, written for this test."""

import json

import pytest

from envs.mbpp import mbpp
from envs.sources import RowsError

DOUBLE = {
    "text": "Write a function to double a number.",
    "code": "import math\r\ndef helper(n):\r\n  return n\r\ndef double(n): \r\n\treturn 2 * helper(n)",
    "task_id": 11,
    "test_setup_code": "",
    "test_list": ["assert double(2) == 4 ", "assert double(-1)==-2", "assert double(0) == 0"],
    "challenge_test_list": ["assert double(1) == 2"],
}
REVISED = {
    "source_file": "x.ipynb",
    "task_id": 601,
    "prompt": "Write a function to find the halves.",
    "code": "def halves(ns):\n  return [n / 2 for n in ns]",
    "test_imports": ["import math"],
    "test_list": ["assert math.isclose(sum(halves([1, 2])), 1.5)", "assert set(halves([4, 4])) == set([2.0])"],
}
TRUTH = {**DOUBLE, "text": "Is it even?", "code": "def even(n):\n  return n and 0", "test_list": ["assert even(0) == False"]}
NEEDS_CLASS = {
    **DOUBLE,
    "text": "Write a function about pairs.",
    "code": "class Pair:\n  pass\ndef first(p):\n  return 1",
    "test_list": ["assert first(Pair()) == 1"],
}
NEEDS_SETUP = {**NEEDS_CLASS, "text": "And trees.", "test_setup_code": "root = Pair()", "test_list": ["assert first(root) == 1"]}
COMPLEX = {  # no plain data, as in the official task 590
    **DOUBLE,
    "text": "A root of minus n.",
    "code": "def root(n):\n  return n * 1j",
    "test_list": ["assert root(2) == 2j"],
}
USES_IMPORT = {**DOUBLE, "text": "Use what the program imports.", "test_list": ["assert double(math.floor(2.5)) == 4"]}


def task(tmp_path, *rows, name="a.jsonl", declared=True, **settings):
    (tmp_path / name).write_text(json.dumps(rows) if name.endswith(".json") else "\n".join(map(json.dumps, rows)))
    return mbpp({"test": str(tmp_path / name)} if declared else str(tmp_path / name), **settings)


@pytest.mark.parametrize("row", [DOUBLE, REVISED, TRUTH, USES_IMPORT])
def test_reference_programs_earn_all_and_others_less(tmp_path, row):
    for name in ("a.jsonl", "sanitized.json"):
        made = task(tmp_path, row, name=name)
        item = made.row("test", 0)
        assert item.gold == row["code"]
        assert made.score(item, item.gold).reward == 1.0
        assert made.score(item, f"Sure!\n```python\n{item.gold}\n```").reward == 1.0
        for wrong in ("", "x = 1", "def other(n): return n", row["code"].replace("return", "print")):
            assert made.score(item, wrong).reward < 1.0


def test_the_prompt_shows_one_assertion_or_what_the_template_says(tmp_path):
    assert task(tmp_path, DOUBLE).row("test", 0).prompt == '"""\nWrite a function to double a number.\nassert double(2) == 4\n"""\n'
    all_of_them = task(tmp_path, DOUBLE, template="{text}\n{tests}\n[BEGIN]\n").row("test", 0).prompt
    assert all_of_them.count("assert") == 3


def test_share_of_the_assertions(tmp_path):
    made = task(tmp_path, DOUBLE)
    item = made.row("test", 0)
    score = made.score(item, "def double(n):\n    return 2 * abs(n)")
    assert score.reward == pytest.approx(2 / 3)
    assert score.info == {"share": score.reward, "solved": 0.0}
    assert task(tmp_path, DOUBLE, reward="all").score(item, "def double(n):\n    return 2 * abs(n)").reward == 0.0


def test_task_numbers_divide_one_file_as_published(tmp_path):
    rows = [{**DOUBLE, "task_id": n, "text": f"Task {n}."} for n in (1, 10, 11, 510, 511, 600, 601, 974)]
    made = task(tmp_path, *rows, declared=False)
    found = {s: [made.row(s, i).prompt.split()[2] for i in range(made.size(s))] for s in ("train", "valid", "test")}
    assert found == {"train": ["1.", "10.", "601.", "974."], "valid": ["511.", "600."], "test": ["11.", "510."]}


def test_rows_that_cannot_be_asked_are_left_out_with_reasons(tmp_path):
    broken = [
        {**DOUBLE, "text": "a", "code": "def ("},
        {**DOUBLE, "text": "b", "test_list": []},
        {**DOUBLE, "text": "c", "test_list": ["assert nothing(1)"]},
        {**DOUBLE, "text": "d", "plus_input": [[1]]},
    ]
    made = task(tmp_path, DOUBLE, COMPLEX, NEEDS_CLASS, NEEDS_SETUP, *broken)
    assert made.size("test") == 1
    assert {why.split(",")[0]: s.count for why, s in made.skipped.items()} == {
        "assertions that use more than one function of the reference program": 2,
        "a reference program or assertions that are no Python": 1,
        "no assertions in column 'test_list'": 1,
        "assertions that use no function of the reference program": 1,
        "MBPP+ inputs as JSON": 1,
        "a reference program that does not pass its own assertions here": 1,
    }


def test_settings(tmp_path):
    with pytest.raises(RowsError, match="reward must be one of share, all"):
        task(tmp_path, DOUBLE, reward="half")
