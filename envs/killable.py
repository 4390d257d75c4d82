"""What libraries do with text that a model wrote. Runs in guests of the sandbox only: see `isolated.py`, which is the way here.

Hostile text can make these functions use up any time and memory; they are killed from outside, by processor time.

Differs from the source (math-verify, whose `parse` and `verify` these call):
1. Its own time limit, an alarm, is off: it needs the main thread of the caller and can be outlasted by one long operation.
2. What cannot be parsed is said to be no expression, instead of being compared as text; text is compared before (`grading.py`).
"""

import logging
import re
from typing import Any

from math_verify import parse, verify

_SAMPLES = (r"\frac{\sqrt{3}}{2}", r"x^2+2x-1", r"(1,2]", r"\{1, 2\}", r"x=3\pi", r"2\cdot 10^{3}", r"\text{Mon}")


def same_expression(gold: str, answer: str) -> bool | None:
    """Whether two expressions, written in LaTeX or plainly, are equal; None if one of them is no expression."""
    try:
        right, given = _parsed(gold), _parsed(answer)
        return verify(right, given, timeout_seconds=None) if right and given else None
    except MemoryError:
        raise
    except Exception:  # whatever it is that a parser or an algebra system makes of hostile text
        return None


def found(pattern: str, text: str) -> bool:
    """Whether a regular expression is found in a text. The pattern is the user's; the text may be made to match it slowly."""
    return re.search(pattern, text) is not None


def _parsed(expression: str) -> list[Any]:
    result: list[Any] = parse(rf"\boxed{{{expression}}}", fallback_mode="no_fallback", parsing_timeout=None)
    return result


def _warm_up() -> None:
    """Guests are copies of the process that imports this module: what its parser has met already, theirs need not learn again."""
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    for sample in _SAMPLES:
        same_expression(sample, sample + "+0")


_warm_up()
