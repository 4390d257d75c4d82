"""The score of an answer to a mathematical question: read purely where possible, compared by math-verify where it takes algebra.

Of one completion one answer is read. The marked one, if it can be understood; else, where the gold answer is a number, the last
number of the text (strict accuracy does not count that), and where it is not, the last $...$ or the last line.
"""

import re

from envs import isolated
from envs.grading import Quantity, equal, last_number, marked_answer, marked_number, quantity
from envs.text import Score

_MAX_COMPLETION = 20_000
_DOLLARS = re.compile(r"\$([^$\n]{1,400})\$")


def score_math(gold: str, completion: str) -> Score:
    """1.0 if the answer equals the gold answer. SandboxFault if the machinery failed where it was needed."""
    text = completion[-_MAX_COMPLETION:]
    number = quantity(gold)
    return _score_number(gold, number, text) if number else _score_expression(gold, text)


def score_number(gold: Quantity, completion: str) -> Score:
    """1.0 if the number read equals the gold number: purely, without the sandbox."""
    marked, number = marked_number(completion), last_number(completion)
    if number is None:
        return verdict(None, False)
    right = gold.value == number
    return verdict(right, marked is not None, str(number))


def _score_number(gold: str, number: Quantity, text: str) -> Score:
    marked = marked_answer(text)
    given = quantity(marked.text) if marked else None
    if marked and given:
        return verdict(number.equals(given), True, marked.text)
    right = _compare(gold, marked.text) if marked and marked.formal else None
    return score_number(number, text) if right is None or not marked else verdict(right, True, marked.text)


def _score_expression(gold: str, text: str) -> Score:
    marked = marked_answer(text)
    dollars, lines = _DOLLARS.findall(text), text.strip().splitlines()
    given = marked.text if marked else dollars[-1] if dollars else lines[-1] if lines else None
    return verdict(bool(_compare(gold, given)) if given else None, marked is not None, given or "")


def _compare(gold: str, answer: str) -> bool | None:
    right = equal(gold, answer)
    return isolated.same_expression(gold, answer) if right is None else right


def verdict(right: bool | None, strict: bool, answer: str = "") -> Score:
    """The score of an answer that is right, wrong or missing (None); `strict` if it was marked as the answer."""
    info = {"strict": float(bool(right) and strict), "flexible": float(bool(right))}
    return Score(info["flexible"], "no_answer" if right is None else "pass" if right else "wrong", answer[:400], info)
