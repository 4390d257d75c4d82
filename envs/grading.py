"""Reading an answer out of a completion, and deciding whether it equals the gold answer. Pure functions, no model text is run.

The answer is taken from the last of these that the text has, in this order of trust:

    \\boxed{42}     #### 42     The answer is 42     ... the last number in the text

A number may carry a sign, thousands separators, a currency sign, decimals, or be a fraction a/b. Equality is exact, on
rational numbers: 0.50 equals 1/2 and 1,450,000 equals 1450000.

Source: the conventions of GSM8K ("#### n") and lm-evaluation-harness (strict and flexible extraction side by side).
Differs from the source:
1. The released code of the method reads "1,450,000" as 0; here separators are part of the number.
2. Of several marked answers the last one counts, so that spraying guesses earns what the final guess earns.
"""

import re
from fractions import Fraction

_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)"
_NUMBER = rf"(?:(?<![\w)])[-+\u2212])?(?:[$€£][-\u2212]?)?(?:{_DIGITS}(?:\.\d+|\s?/\s?\d+)?|\.\d+)"
_LAST_NUMBER = re.compile(_NUMBER)
_MARKED = re.compile(rf"(?:\\boxed\{{|####|answer\s+is:?)\s*({_NUMBER})", re.IGNORECASE)
_MAX_CHARACTERS = 20_000
_MAX_DIGITS = 400


def marked_number(text: str) -> Fraction | None:
    """The last number that the text marks as its answer, or None."""
    found = _MARKED.findall(text[-_MAX_CHARACTERS:])
    return to_number(found[-1]) if found else None


def last_number(text: str) -> Fraction | None:
    """The marked answer if there is one, else the last number in the text, or None."""
    marked = marked_number(text)
    if marked is not None:
        return marked
    found = _LAST_NUMBER.findall(text[-_MAX_CHARACTERS:])
    return to_number(found[-1]) if found else None


def to_number(text: str) -> Fraction | None:
    """An exact rational from "-1,450.50", "$3", "3/4"; None if it is no number, divides by zero or is absurdly long."""
    plain = re.sub(r"[,\s$€£+]", "", text.replace("\u2212", "-"))
    if len(plain) > _MAX_DIGITS:
        return None
    try:
        return Fraction(plain)
    except (ValueError, ZeroDivisionError):
        return None
