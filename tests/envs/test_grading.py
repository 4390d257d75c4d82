from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.grading import Quantity, equal, last_number, marked_answer, marked_number, plain, quantity, to_number

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


MARKED_TEXT = [
    ("So it is \\boxed{42}.", "42"),
    (r"\boxed{\frac{1}{\sqrt{2}}} and so on", r"\frac{1}{\sqrt{2}}"),
    (r"\boxed{1} then \boxed{\{1, 2\}}", r"\{1, 2\}"),
    (r"\fbox {x}", "x"),
    (r"\boxed{a \} b}", r"a \} b"),
    ("#### 1,450\nQuestion", "1,450"),
    ("The answer is **12%**.", "12%"),
    ("The final answer is: $x^2$, as shown.", "x^2"),
    (r"The answer is \(\frac12\).", r"\frac12"),
    ("**Final Answer:** 5 km", "5 km"),
    ("The answer is 4.\n\\boxed{5}", "5"),
    ("\\boxed{5}. The answer is", "5"),
    (r"\boxed{5} or \boxed{", "5"),
    (r"\boxed{} #### 7", "7"),
    ("to get the final answer we add 1", None),
    ("42", None),
    ("", None),
]
QUANTITIES = [
    ("1,450,000", 1_450_000, False, ""),
    ("-3", -3, False, ""),
    ("\u22123", -3, False, ""),
    ("+3.50", Fraction(7, 2), False, ""),
    ("$-5", -5, False, ""),
    ("-$5", -5, False, ""),
    (r"\$1{,}200", 1200, False, ""),
    (r"1\,000\,000", 1_000_000, False, ""),
    ("3/4", Fraction(3, 4), False, ""),
    (r"-\frac{3}{4}", Fraction(-3, 4), False, ""),
    (r"\dfrac34", Fraction(3, 4), False, ""),
    (r"2\frac{1}{2}", Fraction(5, 2), False, ""),
    ("2 1/2", Fraction(5, 2), False, ""),
    ("-2 1/2", Fraction(-5, 2), False, ""),
    (r"12\%", 12, True, ""),
    ("12.5 percent", Fraction(25, 2), True, ""),
    (r"5 \text{ km}", 5, False, "km"),
    ("5km", 5, False, "km"),
    ("5 pens", 5, False, "pen"),
    ("5 square feet", 5, False, "square feet"),
    ("90 km/h", 90, False, "km/h"),
    (r"45^\circ", 45, False, "°"),
    ("3 million", 3_000_000, False, ""),
    ("1.5 million dollars", 1_500_000, False, "dollar"),
    (r"2 \times 10^{3}", 2000, False, ""),
    (r"6.02\cdot 10^{-2}", Fraction("0.0602"), False, ""),
    ("1e3", 1000, False, ""),
    ("x = 7", 7, False, ""),
    ("54 + 13 = 67", 67, False, ""),
    ("$72$", 72, False, ""),
    ("72.", 72, False, ""),
    ("**72**", 72, False, ""),
]
NO_QUANTITY = [
    *(
        "",
        "x",
        "2x",
        "2 x",
        "2 y",
        "5 or six",
        "5 plus one",
        "2xy",
        "5 or 6",
        "5 and 6",
        "5 to 6",
        "1,2",
        "1,23",
        "(1,2)",
        "x^2=5",
        "3/0",
        "1/2/3",
        "2^5",
        "1e9999",
        "--",
    ),
    *(r"\sqrt{16}", "5, 6", "5 pens, 6 cups", "1e99999999999", "9" * 401, "5 km 6", "five"),
]
EQUAL = [
    ("12", "12%", True),
    ("0.12", "12%", True),
    ("12%", "0.12", True),
    ("12%", "12", True),
    ("12", "0.12", False),
    ("12%", "1200%", False),
    ("5 km", "5", True),
    ("5", "5 km", True),
    ("5 km", "5 m", False),
    ("3 pens", "3 pen", True),
    ("0.5", r"\frac{1}{2}", True),
    ("1/3", "0.333333", False),
    ("Monday", r"\text{monday}", True),
    ("Monday", "Tuesday", False),
    ("x", "X", False),
    ("(1, 2)", "(1,2)", True),
    (r"\frac{x}{2}", "x/2", True),
    ("5", "x^2=5", False),
    ("5", "unknown", False),
    ("5", "1, 2, 3, 4, 5", False),
    ("5", "5}{", False),
    ("x^2+1", "1+x^2", None),
    ("4", r"\sqrt{16}", None),
    ("2x", "x*2", None),
    ("1", "x" * 500, False),
    ("x" * 500, "x" * 500, True),
]


@pytest.mark.parametrize(("text", "marked"), MARKED_TEXT)
def test_the_last_mark_that_holds_anything_counts(text, marked):
    found = marked_answer(text)
    assert (found.text if found else None) == marked


def test_boxes_and_dollars_are_formal():
    assert [marked_answer(t).formal for t in (r"\boxed{5}", "The answer is $5$", "The answer is 5", "#### 5")] == [
        True,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize(("text", "value", "percent", "unit"), QUANTITIES)
def test_quantities(text, value, percent, unit):
    assert quantity(text) == Quantity(Fraction(value), percent, unit)


@pytest.mark.parametrize("text", NO_QUANTITY)
def test_what_is_no_quantity(text):
    assert quantity(text) is None


@pytest.mark.parametrize(("gold", "answer", "same"), EQUAL)
def test_equality_is_decided_or_left_to_mathematics(gold, answer, same):
    assert equal(gold, answer) is same


@given(
    st.text(alphabet=st.one_of(st.sampled_from("{}\\$0123456789.,/%- xk^=_()\n"), st.characters()), max_size=60),
    st.text(max_size=20),
)
def test_any_answer_is_compared_without_an_error_and_equals_itself(text, other):
    marked_answer(text)
    assert equal(text, text) in (True, None) or "{" in text or "}" in text
    assert equal(text, other) in (True, False, None)


@given(st.fractions(max_denominator=1000), st.sampled_from(["{}", r"\frac{{{n}}}{{{d}}}", "${}$", "x = {}"]))
def test_every_way_of_writing_a_fraction_is_read_back(value, style):
    written = style.format(value, n=value.numerator, d=value.denominator)
    assert quantity(written).value == value
    assert equal(str(value), written) is True


@given(st.text())
def test_plain_twice_is_plain_once_for_numbers(text):
    if quantity(text):
        assert quantity(plain(text)).value == quantity(text).value


def test_hostile_lengths_are_bounded():
    assert last_number("9" * 5_000_000) is None
    assert last_number("1/" * 2_000_000) is not None
    assert last_number("answer is " * 1_000_000 + "4") == 4
    assert to_number("1e999999999") is None


@pytest.mark.parametrize(
    "text",
    [
        "\\boxed{" * 100_000,
        "answer is " * 100_000,
        "answer" + " " * 1_000_000,
        "{" * 400,
        "\\frac" * 80,
        "1 " * 200,
        "1,111" * 80,
        "=" * 400,
    ],
)
def test_hostile_texts_are_read_in_no_time(text):
    import time

    started = time.process_time()
    marked_answer(text)
    equal("5", text)
    equal("5", text[:400])
    assert time.process_time() - started < 0.5
