"""Rows in both of EvalPlus's forms, written for this test."""

import json

import pytest

from envs.humaneval import humaneval
from envs.mbpp import mbpp

INPUTS = {  # as in the released files
    "task_id": "Own/0",
    "prompt": 'def mean(xs):\n    """ The mean of xs; 0 for none."""\n',
    "entry_point": "mean",
    "canonical_solution": "    return sum(xs) / len(xs) if xs else 0\n",
    "contract": "",
    "base_input": [[[1, 2]], [[]]],
    "plus_input": [[[0.1, 0.2, 0.3]], [[10**6, 3]], [[-5]]],
    "atol": 0,
}
ZERO = {  # any zero will do
    "task_id": "Own/32",
    "prompt": 'def find_zero(xs):\n    """ A zero of xs[0] + xs[1] * x + xs[2] * x ** 2."""\n',
    "entry_point": "find_zero",
    "canonical_solution": "    return 1.0\n",
    "base_input": [[[2, -3, 1]]],
    "plus_input": [[[4, -6, 2]]],
    "atol": 1e-4,
}
HARNESS = """
import numpy as np

def is_floats(x) -> bool:
    if isinstance(x, float):
        return True
    if isinstance(x, (list, tuple)):
        return all(isinstance(i, float) for i in x)
    if isinstance(x, np.ndarray):
        return x.dtype == np.float64 or x.dtype == np.float32
    return False

def compare(out, exp, atol):
    if atol == 0 and is_floats(exp):
        atol = 1e-6
    if out != exp and atol != 0:
        np.testing.assert_allclose(out, exp, rtol=1e-07, atol=atol)
    else:
        assert out == exp, f"out: {out}, exp: {exp}"
"""
CHECK = f"""{HARNESS}
def check(candidate):
    inputs = [[[1, 2]], [[]], [[0.1, 0.2]]]
    results = [1.5, 0, 0.15]
    for inp, exp in zip(inputs, results):
        compare(candidate(*inp), exp, 0)
"""
HUB = {key: value for key, value in INPUTS.items() if "input" not in key} | {"test": CHECK}
HUB_MBPP = {
    "task_id": 2,
    "prompt": "Write a function to swap a pair.",
    "code": "def swap(pair):\n    return pair[1], pair[0]",
    "source_file": "x",
    "test_imports": [],
    "test_list": ["assert swap((1, 2)) == (2, 1)"],
    "test": f"{HARNESS}\ninputs = [[(1, 2)], [(0.5, 3)]]\nresults = [(2, 1), (3, 0.5)]\n"
    "for i, (inp, exp) in enumerate(zip(inputs, results)):\n    compare(swap(*inp), exp, 0)\n",
}


def only(tmp_path, make, row):
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    made = make({"test": str(tmp_path / "a.jsonl")})
    return made, made.row("test", 0)


@pytest.mark.parametrize("row", [INPUTS, HUB])
def test_means(tmp_path, row):
    made, item = only(tmp_path, humaneval, row)
    right = [
        item.gold,
        "    return float(sum(xs)) / max(1, len(xs))\n",
        "    from math import fsum\n    return fsum(xs) / len(xs) if xs else 0.0\n",
    ]
    wrong = ["    return sum(xs) / len(xs)\n", "    return 1.5\n", "    pass\n", "    return [sum(xs)]\n", "    return 'x'\n", ""]
    assert [made.score(item, body).reward for body in right] == [1.0] * 3
    assert [made.score(item, body).reward for body in wrong] == [0.0] * 6


def test_any_zero_is_a_zero(tmp_path):
    made, item = only(tmp_path, humaneval, ZERO)
    for value, reward in [("1.0", 1.0), ("2", 1.0), ("2.000001", 1.0), ("1.5", 0.0), ("float('nan')", 0.0)]:
        assert made.score(item, f"    return {value}\n").reward == reward, value


def test_pairs_stay_pairs(tmp_path):
    made, item = only(tmp_path, mbpp, HUB_MBPP)
    assert item.prompt == '"""\nWrite a function to swap a pair.\nassert swap((1, 2)) == (2, 1)\n"""\n'
    assert made.score(item, item.gold).reward == 1.0
    assert made.score(item, "def swap(pair):\n    return list(pair)[::-1]").reward == 0.0
    assert made.score(item, "def swap(pair):\n    return 2, 1").reward == 0.0


def test_the_program_cannot_reach_the_canonical_solution(tmp_path):
    """It runs in the guest of the assertions, where no model code is."""
    made, item = only(tmp_path, humaneval, INPUTS)
    for body in (
        "    import sys\n    return sys.modules['solution']._space['mean'](xs)\n",
        "    import gc\n    return next(o for o in gc.get_objects() if '_CANONICAL' in repr(o))['_space']['mean'](xs)\n",
        "    global _space\n    return _space['mean'](xs)\n",
    ):
        assert made.score(item, body).reward == 0.0
