"""Reading an answer out of a completion, and deciding whether it equals the gold answer. Pure functions, no model text is run.

A number is taken from the last of these that the text has, in this order of trust:

    \\boxed{42}     #### 42     The answer is 42     ... the last number in the text

Strict accuracy counts marked answers only, flexible accuracy also the last number. A number may carry a sign, thousands
separators, a currency sign, decimals, or be a fraction a/b. Equality is exact, on rational numbers: 0.50 equals 1/2 and 1,450,000
equals 1450000.

A marked answer is read more generously, as a quantity: LaTeX fractions and spacing, mixed fractions, powers of ten, "million", a
percent sign, a unit, "x =" before it. What is no quantity is compared as text; and what could be equal mathematics in other words
(\\sqrt{16} and 4) is not decided here: `equal` says None, and `answers.py` asks math-verify in the sandbox.

Source: the conventions of GSM8K ("#### n"), MATH (\\boxed) and lm-evaluation-harness (strict and flexible extraction side by side).
Differs from the source:
1. The released code of the method reads "1,450,000" as 0; here separators are part of the number.
2. Of several marked answers the last one counts, so that spraying guesses earns what the final guess earns. One answer is read from
   a text, whichever way it is read.
3. 12% equals 12 and 0.12, whichever of the two the gold answer is; but 12 does not equal 0.12.
4. A unit counts when both sides have one: 5 km equals 5, and not 5 m. Units are not converted.
"""

import re
from dataclasses import dataclass
from fractions import Fraction

_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)"
_NUMBER = rf"(?:(?<![\w)])[-+\u2212])?(?:[$€£][-\u2212]?)?(?:{_DIGITS}(?:\.\d+|\s?/\s?\d+)?|\.\d+)"
_LAST_NUMBER = re.compile(_NUMBER)
_MARKED = re.compile(rf"(?:\\boxed\{{|####|answer\s+is:?)\s*({_NUMBER})", re.IGNORECASE)
_MARK = re.compile(r"\\(?:boxed|fbox)\s*\{|####|(?:answer\s+is|final\s+answer\**\s*:)[:*\s]*", re.IGNORECASE)
_LATEX = re.compile(r"\$([^$]+)\$|\\\((.+?)\\\)")
_MAX_CHARACTERS = 20_000
_MAX_DIGITS = 400
_MAX_ANSWER = 400
_MAX_MARKS = 8  # of which the last that holds anything counts

_PLAIN_FRACTION = re.compile(r"\\[dt]?frac\s*(?:\{([^{}]*)\}|(\d))\s*(?:\{([^{}]*)\}|(\d))")
_WORDS = re.compile(r"\\(?:text|textbf|textrm|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
_SPACING = re.compile(r"\\left|\\right|\\[!,;:> ]|\\q?quad|~|\{(?=,\})|(?<=,)\}(?=\d)|\*\*|^\s*\$|\$\s*$|\\[()\[\]]")
_SIGNS = {"\u2212": "-", "\\%": "%", "\\$": "$", "\\cdot": "*", "\\times": "*", "\u00d7": "*", "^\\circ": "°", "^{\\circ}": "°"}
_ASSIGNMENT = re.compile(r"(?:[A-Za-z](?:_\w)?(?:\([a-z]\))?\s?|[^A-Za-z\\]*)=")
_UNIT_WORD = r"(?!(?:or|and|to|not|but|plus|minus|times)\b)(?:[^\W\d_]{2,}|[mgshl]\b)"
_QUANTITY = re.compile(
    rf"(?P<sign>[-+]?)\s?[$€£]?\s?(?P<sign2>-?)(?:(?P<whole>\d{{1,9}})\s(?=\d+/))?(?P<number>{_DIGITS}(?:\.\d*)?|\.\d+)"
    r"(?:\s?/\s?(?P<below>\d+))?(?:\s?\*\s?10\s?\^\s?\{?(?P<power>-?\d{1,3})\}?|[eE](?P<exponent>[-+]?\d{1,3}))?"
    r"(?:\s?(?P<times>hundred|thousand|million|billion))?(?:\s?(?P<percent>%|percent))?"
    rf"(?P<unit>°|[kcm]m|[km]g|ml|ft|lbs?|mph|\s{_UNIT_WORD}\.?(?:(?:\s|\s?/\s?){_UNIT_WORD}){{0,3}}(?:\^?[23])?)?"
)
_BRACE, _DEPTH = re.compile(r"\\.|[{}]", re.DOTALL), {"{": 1, "}": -1}
_TIMES = {"hundred": 100, "thousand": 1_000, "million": 10**6, "billion": 10**9}
_MATHEMATICS = re.compile(r"[\\^_=+*/<>(){}\[\]|∞π√]|\d\s*[A-Za-z]|[A-Za-z]\s*\d")


@dataclass(frozen=True)
class Quantity:
    """An exact number, whether a percent sign follows it, and the unit it is given in."""

    value: Fraction
    percent: bool = False
    unit: str = ""

    def equals(self, other: "Quantity") -> bool:
        """Whether two quantities are the same, by the rules 3 and 4 of this module."""
        if self.unit and other.unit and self.unit != other.unit:
            return False
        if self.value == other.value or self.percent == other.percent:
            return self.value == other.value
        return (self.value / 100 if self.percent else self.value) == (other.value / 100 if other.percent else other.value)


@dataclass(frozen=True)
class Marked:
    """An answer that was marked, and whether it was in a box or between dollars, so that it should be all of mathematics."""

    text: str
    formal: bool


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
    if len(plain) > _MAX_DIGITS or not re.fullmatch(r"-?[\d./]+", plain):
        return None
    try:
        return Fraction(plain)
    except (ValueError, ZeroDivisionError):
        return None


def marked_answer(text: str) -> Marked | None:
    """What the text marks as its answer: the inside of the last box, or the rest of the line after the last other mark; or None."""
    text = text[-_MAX_CHARACTERS:]
    marks = list(_MARK.finditer(text))[-_MAX_MARKS:]
    found = (_boxed(text, mark.end()) if mark[0].endswith("{") else _line(text, mark.end()) for mark in reversed(marks))
    return next(filter(None, found), None)


def _line(text: str, start: int) -> Marked | None:
    line = text[start:].lstrip().split("\n", 1)[0].strip()
    if latex := _LATEX.match(line):
        return Marked((latex[1] or latex[2]).strip(), True)
    line = re.sub(r"[.!*\s]+$", "", line)
    return Marked(line, False) if line else None


def _boxed(text: str, start: int) -> Marked | None:
    """What stands before the brace that closes the one before `start`; None if nothing closes it."""
    depth = 1
    for brace in _BRACE.finditer(text, start):
        depth += _DEPTH.get(brace[0], 0)
        if depth == 0:
            return Marked(text[start : brace.start()].strip(), True) if text[start : brace.start()].strip() else None
    return None


def quantity(text: str) -> Quantity | None:
    """The number, percent sign and unit that a marked answer consists of, or None if it is anything else."""
    found = _QUANTITY.fullmatch(plain(text)) if len(text) <= _MAX_ANSWER else None
    number = to_number(found["number"].rstrip(".")) if found else None
    if found is None or number is None or (found["below"] and int(found["below"]) == 0):
        return None
    number = number / int(found["below"] or 1) + int(found["whole"] or 0)
    number *= Fraction(10) ** int(found["power"] or found["exponent"] or 0) * _TIMES.get(found["times"], 1)
    sign = -1 if (found["sign"] == "-") != bool(found["sign2"]) else 1
    return Quantity(sign * number, bool(found["percent"]), (found["unit"] or "").strip().lower().removesuffix("s"))


def plain(text: str) -> str:
    """A short answer without LaTeX's dress: fractions as a/b, words without \\text, no spacing commands, nothing before "x ="."""
    for sign, written in _SIGNS.items():
        text = text.replace(sign, written)
    text = _WORDS.sub(r" \1 ", _SPACING.sub("", text))
    text = _PLAIN_FRACTION.sub(lambda f: f" {f[1] or f[2]}/{f[3] or f[4]}", text)
    text = " ".join(text.split()).rstrip(".").strip()
    before = _ASSIGNMENT.match(text)
    return text[before.end() :].strip() if before and "=" not in text[before.end() :] else text


def equal(gold: str, answer: str) -> bool | None:
    """Whether a marked answer is the gold answer; None if that takes mathematics to decide.

    Both are texts such as "1,450", "\\frac{3}{4}", "12\\%", "5 km" or "(-\\infty, 2]".
    """
    if len(gold) > _MAX_ANSWER or len(answer) > _MAX_ANSWER or not _balanced(answer):
        return gold == answer
    right, given = quantity(gold), quantity(answer)
    if right and given:
        return right.equals(given)
    if _bare(gold) == _bare(answer):
        return True
    if "=" in plain(answer) and "=" not in plain(gold):  # an equation is no value
        return False
    return None if _MATHEMATICS.search(gold) or _MATHEMATICS.search(answer) else False


def _bare(text: str) -> str:
    bare = re.sub(r"[\s{}]", "", plain(text))
    return bare.casefold() if bare.isalpha() and len(bare) > 2 else bare


def _balanced(text: str) -> bool:
    depth = 0
    for brace in _BRACE.findall(text):
        depth += _DEPTH.get(brace, 0)
        if depth < 0:
            return False
    return depth == 0
