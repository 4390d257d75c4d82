from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.grading import last_number, marked_number, to_number

TABLE = [
    (" The answer is 29.", 29),
    ("the answer is: 29", 29),
    ("#### 1,450,000", 1_450_000),
    ("so we get\n#### -3", -3),
    (r"\boxed{42}", 42),
    (r"\boxed{3/4}", Fraction(3, 4)),
    ("The answer is $1,200.50.", Fraction("1200.5")),
    ("The answer is \u22127", -7),
    ("The answer is -$5.", -5),
    ("The answer is .5", Fraction(1, 2)),
    ("The answer is 12. The answer is 13.", 13),
    ("The answer is 007", 7),
]
UNMARKED = [
    (" 218.", 218),
    ("23 + 14 = 37", 37),
    ("67-28", 28),
    ("67 - 28", 28),
    ("-5", -5),
    ("it is 0.50", Fraction(1, 2)),
    ("1,23", 23),
    ("The answer is 5, not 6", 5),
]
NONE = ["", "none at all", "The answer is unknown", "3/0", "...", ",", "-", "\ud800"]


@pytest.mark.parametrize(("text", "number"), TABLE)
def test_marked_answers(text, number):
    assert marked_number(text) == last_number(text) == number


@pytest.mark.parametrize(("text", "number"), UNMARKED)
def test_the_last_number_counts_when_none_is_marked(text, number):
    assert last_number(text) == number


@pytest.mark.parametrize("text", NONE)
def test_no_number(text):
    assert last_number(text) is None


@given(st.text())
def test_any_text_is_read_without_an_error(text):
    last_number(text)


@given(st.integers(-(10**12), 10**12))
def test_every_way_of_writing_a_whole_number_is_read_back(n):
    for written in (str(n), f"{n:,}", f"{n}.0", f"{n:+}"):
        assert to_number(written) == n
        assert last_number(f"The answer is {written}.") == n


def test_hostile_lengths_are_bounded():
    assert last_number("9" * 5_000_000) is None
    assert last_number("1/" * 2_000_000) is not None
    assert last_number("answer is " * 1_000_000 + "4") == 4
