"""math-verify and regular expressions in the sandbox: right, bounded, and harmless."""

import os
import time

import pytest

from envs import isolated, killable
from envs.sandbox import CallError, Limits, SandboxFault, Verdict

EQUAL = [
    ("4", r"\sqrt{16}"),
    (r"\frac{\sqrt{3}}{2}", r"\frac{1}{2}\sqrt{3}"),
    ("x^2+2x+1", "(x+1)^2"),
    ("6", "3!"),
    ("32", "2^5"),
    (r"\{1,2\}", "2,1"),
    ("x>5", "5<x"),
    (r"(-\infty, 2]", r"(-\infty,2]"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1\\\frac{4}{2}\end{pmatrix}"),
    (r"\frac{\pi}{4}", r"\arctan(1)"),
]
DIFFERENT = [
    ("4", r"\sqrt{15}"),
    ("x^2+1", "x^2-1"),
    ("(1,2)", "[1,2]"),
    ("2", "1,2,3"),
    ("2", r"1 \text{ or } 2"),
    (r"\pi", "3.14"),
]
NO_EXPRESSION = ["", r"\text{hi", "))((", "\\", "\x00", "\ud83d", "__import__('os').system('touch /tmp/owned')"]
HOSTILE = [
    "9^{9^{9^{9}}}",
    "100000000!",
    "(x+1)^{3000}",
    "(" * 400,
    r"\sqrt{" * 60 + "}" * 60,
    r"\frac{1}{" * 50 + "0" + "}" * 50,
    r"\int_0^{\infty} e^{-x^{x^x}} dx",
    r"\sum_{n=1}^{10^{10}} \sin(n!)",
    "1" * 390,
    "x_" * 190,
]


@pytest.fixture
def brisk(monkeypatch):
    monkeypatch.setattr(isolated, "LIBRARY_LIMITS", Limits(cpu_seconds=0.5, memory_mb=512, wall_seconds=60.0))
    isolated.same_expression.cache_clear()
    yield
    isolated.same_expression.cache_clear()


@pytest.mark.parametrize(("gold", "answer"), EQUAL)
def test_equal_expressions(gold, answer):
    assert isolated.same_expression(gold, answer) is True


@pytest.mark.parametrize(("gold", "answer"), DIFFERENT)
def test_different_expressions(gold, answer):
    assert isolated.same_expression(gold, answer) is False


@pytest.mark.parametrize("answer", NO_EXPRESSION)
def test_what_is_no_expression_never_equals(answer):
    assert not isolated.same_expression("5", answer)
    assert not os.path.exists("/tmp/owned")


def test_hostile_answers_are_bounded_and_leave_the_sandbox_well(brisk):
    for answer in HOSTILE:
        started = time.monotonic()
        assert not isolated.same_expression("5", answer), answer
        assert time.monotonic() - started < 60
    assert isolated.found("a", "a")


def test_a_pattern_that_backtracks_for_ever_is_not_found(brisk):
    assert isolated.found(r"ans(wer)? is (\d+)", "the answer is 12")
    assert not isolated.found(r"^\d+$", "twelve")
    assert not isolated.found(r"(a+)+$", "a" * 60 + "b")


def test_limits_are_the_answers_doing_and_errors_are_ours(monkeypatch):
    class Failing:
        def __init__(self, verdict: Verdict) -> None:
            self.verdict = verdict

        def call(self, *_: object, **__: object) -> bool:
            raise CallError(self.verdict, "No module named 'math_verify'")

    for verdict in (Verdict.TIMEOUT, Verdict.MEMORY, Verdict.CRASH, Verdict.VIOLATION, Verdict.PROTOCOL, Verdict.OUTPUT_LIMIT):
        monkeypatch.setattr(isolated, "sandbox", lambda *_, verdict=verdict: Failing(verdict))
        assert isolated.found("a", "a") is False
    monkeypatch.setattr(isolated, "sandbox", lambda *_: Failing(Verdict.ERROR))
    with pytest.raises(SandboxFault, match="math_verify"):
        isolated.found("a", "a")


def test_a_process_has_one_sandbox():
    assert isolated.sandbox() is isolated.sandbox()


def test_what_the_guest_runs_is_what_the_library_says():
    """The same function here, without the sandbox, on harmless text."""
    assert killable.same_expression("4", r"\sqrt{16}") is True
    assert killable.same_expression("4", "5") is False
    assert killable.same_expression("4", "") is None
    assert killable.found("b$", "ab")


def test_running_out_of_memory_is_not_swallowed(monkeypatch):
    def full(*_: object, **__: object) -> list:
        raise MemoryError

    monkeypatch.setattr(killable, "parse", full)
    with pytest.raises(MemoryError):
        killable.same_expression("4", "5")
