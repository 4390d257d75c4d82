"""Assertions become tests when they are made of literals, and otherwise run beside the program and not with it."""

import time

import pytest

from envs.sandbox import Sandbox, Test, Verdict, convert
from envs.sandbox.asserts import NotLiteral, _parse, as_check, literal

# In the form of the public data sets, written for this test.
CHECK = """
METADATA = {"author": "nobody", "dataset": "test"}


def check(candidate):
    "Some cases."
    assert candidate([3, 1, 2]) == [1, 2, 3]
    assert candidate([]) == [], "empty"
    assert [1] == candidate([1])
    assert True, "a line some files have"
"""
SORT = "def order(numbers): return sorted(numbers)"
LOOP = """
def check(candidate):
    for n in range(20):
        assert candidate(list(range(n))[::-1]) == list(range(n))
"""
HELPER = """
def check(candidate):
    import math
    for x in (2.0, 9.0):
        assert math.fabs(square(candidate(x)) - x) < 1e-6
"""


def test_rows_convert() -> None:
    assert convert(CHECK, "order") == (
        Test(([3, 1, 2],), {}, [1, 2, 3], 0.0),
        Test(([],), {}, [], 0.0),
        Test(([1],), {}, [1], 0.0),
    )


@pytest.mark.parametrize(
    ("source", "test"),
    [
        ("assert f(1, b=2) == 3", Test((1,), {"b": 2}, 3, 0.0)),
        ("assert f(-1) == (+2, -3.5)", Test((-1,), {}, (2, -3.5), 0.0)),
        ("assert f('a' * 3, [0] * 2) == {1: {2, 3}}", Test(("aaa", [0, 0]), {}, {1: {2, 3}}, 0.0)),
        ("assert f(set(), float('inf')) == 10 ** 3", Test((set(), float("inf")), {}, 1000, 0.0)),
        ("assert f(()) is True", Test(((),), {}, True, None)),
        ("assert f(None) is None", Test((None,), {}, None, None)),
        ("assert abs(f(2) - 1.5) < 1e-6", Test((2,), {}, 1.5, 1e-6)),
        ("assert abs(1.5 - f(2)) <= 0.1", Test((2,), {}, 1.5, 0.1)),
    ],
)
def test_statement_converts(source: str, test: Test) -> None:
    assert convert(source, "f") == (test,)


@pytest.mark.parametrize(
    "source",
    [
        "",
        "x = 1",
        "assert f(1)",
        "assert not f(1)",
        "assert f(1) > 0",
        "assert f(1) == g(1)",
        "assert f(f(1)) == 1",
        "assert f(*[1]) == 1",
        "assert f(**{'a': 1}) == 1",
        "assert f(x) == 1",
        "assert f(1) == 1 == 1",
        "assert f(1) == 2j",
        "assert f(1) == {[1]}",
        "for i in [1]:\n  assert f(i) == i",
        "assert f(1) == 1\nprint(f(2))",
        "assert False",
    ],
)
def test_statement_does_not_convert(source: str) -> None:
    assert convert(source, "f") is None


@pytest.mark.parametrize(
    "text",
    [
        "9 ** 9 ** 9",
        "'a' * 10 ** 9",
        "[0] * 10 ** 9",
        "[[0] * 99999] * 99999",
        "10 ** 9 * 'a'",
        "'%1000000000d' % 1",
        "1 / 0",
        "2 ** -2 ** 9 ** 9",
        "1 << 9",
        "__import__('os')",
    ],
)
def test_literals_are_bounded(text: str) -> None:
    statement = _parse(text).body[0]
    started = time.process_time()
    with pytest.raises(NotLiteral):
        literal(statement.value)  # type: ignore[attr-defined]
    assert time.process_time() - started < 0.5


@pytest.mark.parametrize("source", ["def check(", "(" * 5000, "#" * (2 << 20), "\0"])
def test_unreadable_assertions_are_refused(source: str) -> None:
    with pytest.raises(ValueError, match="assertions"):
        convert(source, "f")


def test_plain_statements_are_wrapped() -> None:
    assert as_check("assert f(1) == 1", "f") == "def check(f):\n    assert f(1) == 1"
    assert as_check(CHECK, "order") == CHECK


def test_converted_rows_are_graded_one_by_one(sandbox: Sandbox) -> None:
    assert sandbox.run_asserts(SORT, "order", CHECK).tests == (Verdict.PASS,) * 3
    report = sandbox.run_asserts("def order(numbers): return [] if len(numbers) > 1 else numbers", "order", CHECK)
    assert report.tests == (Verdict.WRONG, Verdict.PASS, Verdict.PASS)
    assert report.passed == pytest.approx(2 / 3)


def test_other_rows_run_in_a_second_guest(sandbox: Sandbox) -> None:
    assert sandbox.run_asserts(SORT, "order", LOOP).verdict is Verdict.PASS
    assert sandbox.run_asserts("def order(numbers): return numbers", "order", LOOP).verdict is Verdict.WRONG
    assert sandbox.run_asserts("def order(numbers): return 1 / 0", "order", LOOP).verdict is Verdict.ERROR
    assert sandbox.run_asserts("def order(numbers):\n  while 1: pass", "order", LOOP).verdict is Verdict.TIMEOUT
    assert sandbox.run_asserts("import os; os._exit(0)", "order", LOOP).verdict is Verdict.PROTOCOL


def test_a_row_may_use_the_preamble_and_its_own_name(sandbox: Sandbox) -> None:
    preamble = "def square(x): return x * x\ndef root(x):\n    'Find it.'\n"
    assert sandbox.run_asserts("def root(x): return x ** 0.5", "root", HELPER, preamble).verdict is Verdict.PASS
    own_name = "def check(candidate):\n    assert tuple(candidate(4.0) for _ in 'ab') == (root(4.0), 2.0)"
    assert sandbox.run_asserts("def root(x): return x ** 0.5", "root", own_name, preamble).verdict is Verdict.PASS


def test_the_program_cannot_touch_the_assertions(sandbox: Sandbox) -> None:
    """It shares no process with them: neither its patches nor its objects arrive there."""
    for source in (
        "import builtins\nbuiltins.AssertionError = type('A', (BaseException,), {})\ndef order(numbers): return 1",
        "class E(list):\n  def __eq__(s, o): return True\ndef order(numbers): return E([9])",
        "import sys\nsys.modules['solution'].check = lambda c: None\ndef check(c): pass\ndef order(numbers): return 1",
        "import _sandbox.guest as g\ng._answer = lambda *a: ['value', None]\ndef order(numbers): return 1",
    ):
        assert sandbox.run_asserts(source, "order", LOOP).verdict is Verdict.WRONG


def test_broken_assertions_are_not_blamed_on_the_program(sandbox: Sandbox) -> None:
    with pytest.raises(ValueError, match="do not load"):
        sandbox.run_asserts(SORT, "order", "import nonsense_module\n" + LOOP)
    assert sandbox.run_asserts(SORT, "order", LOOP).verdict is Verdict.PASS
