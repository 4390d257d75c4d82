"""Whether the value a program sent is the expected one, by type and value.

Design rule: the judge compares wires (see `values.py`). It never builds a set or dict out of a stranger's keys, whose
hashes could be chosen to collide: members and keys are compared as text instead.
"""

import json
import math
from collections.abc import Iterator
from typing import Any

from .values import Wire, decode, encode


def same(actual: Wire, expected: Wire, tolerance: float | None = None) -> bool:
    """Compare two wires by type and value.

    NaN equals NaN only: a test that expects NaN says so by expecting it. In sets and dict keys floats compare exactly.

    Args:
        actual: a checked wire.
        expected: the wire of the right value.
        tolerance: as in `Test.tolerance`.
    """
    if _is_number(actual) and _is_number(expected):
        return _same_number(decode(actual), decode(expected), tolerance)
    if not isinstance(actual, list) or not isinstance(expected, list):
        return type(actual) is type(expected) and actual == expected
    if actual[0] != expected[0] or len(actual) != len(expected):
        return False
    if actual[0] in ("l", "t"):
        return all(same(a, e, tolerance) for a, e in zip(actual[1:], expected[1:], strict=True))
    if actual[0] == "d":
        return _same_dict(actual, expected, tolerance)
    return _key(actual, tolerance) == _key(expected, tolerance)


def _is_number(wire: Wire) -> bool:
    if isinstance(wire, list):
        return wire[0] in ("i", "f")
    return isinstance(wire, int | float) and not isinstance(wire, bool)


def _same_number(actual: float, expected: float, tolerance: float | None) -> bool:
    if tolerance is None and type(actual) is not type(expected):
        return False
    if actual == expected or (actual != actual and expected != expected):
        return True
    try:
        return tolerance is not None and math.isfinite(actual) and abs(actual - expected) <= tolerance
    except OverflowError:  # an integer too large for a float is not near one
        return False


def _pairs(wire: list[Any]) -> Iterator[tuple[Wire, Wire]]:
    return zip(wire[1::2], wire[2::2], strict=True)


def _same_dict(actual: list[Any], expected: list[Any], tolerance: float | None) -> bool:
    theirs = {_key(key, tolerance): value for key, value in _pairs(actual)}
    ours = {_key(key, tolerance): value for key, value in _pairs(expected)}
    return theirs.keys() == ours.keys() and all(same(theirs[key], ours[key], tolerance) for key in ours)


def _key(wire: Any, tolerance: float | None) -> str:
    """A text that two wires share exactly when they are the same set member or dict key."""
    if isinstance(wire, list) and wire[0] == "s":
        return f"s{{{','.join(sorted({_key(item, tolerance) for item in wire[1:]}))}}}"
    if isinstance(wire, list) and wire[0] in ("l", "t", "d"):
        return f"{wire[0]}({','.join(_key(item, tolerance) for item in wire[1:])})"
    if isinstance(wire, float) and (wire == 0 or (tolerance is not None and wire.is_integer())):
        return _key(encode(int(wire), 1_000), tolerance) if tolerance is not None else "0.0"
    return json.dumps(wire)  # text, not equality: True and 1 differ
