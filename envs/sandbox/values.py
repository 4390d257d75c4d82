"""Plain data across the wall, as typed JSON.

A value is encoded as JSON in which None, booleans, small integers, finite floats and strings stand for themselves, and
everything else is an array that starts with a tag: ["l", ...] list, ["t", ...] tuple, ["s", ...] set,
["d", key, value, ...] dict, ["b", hex] bytes, ["i", hex] large integer, ["f", "nan"] a float that JSON cannot say. JSON
objects never occur. The decoded JSON is called a wire; `parse` has checked it for shape, depth and size, so that
nothing after it can be surprised.

Design rule: what comes in is data of ten known types and nothing else; no method of a hostile object is ever called,
because there are no objects.

Differs from the source (typed JSON as used by many judges; no code was taken):
1. Subclasses of the built-in types are flattened through the base type's own slots, so an overridden `__eq__`,
   `__iter__` or `__int__` is never consulted.
2. Integers beyond 15 digits travel in hexadecimal: parsing them is linear, and Python's digit limit does not apply.
3. Nesting is measured on the text before the parser sees it, so a raised recursion limit in the trainer is no risk.
"""

import json
import math
import re
from collections.abc import Callable, Iterable
from typing import Any

Wire = None | bool | int | float | str | list[Any]

MAX_DEPTH = 100
MAX_HASHED = 4096  # members of a set or dict that `decode` will build from a stranger's keys
_SMALL = 10**15  # below this, float, int and JSON readers all agree, and parsing is cheap
_STRUCTURE = re.compile(rb'"(?:[^"\\]|\\.)*"?|[\[\]{}]')


class Unencodable(TypeError):
    """The value is not plain data: a type outside the list, a cycle, or nesting beyond the limit."""


class TooLarge(ValueError):
    """The value would take more bytes than the limit."""


class BadWire(ValueError):
    """The bytes are not one value in the typed JSON of this module."""


def encode(value: object, limit: int) -> Wire:
    """Flatten a value to a wire.

    Args:
        value: the value; subclasses of the built-in types become their base type.
        limit: bytes the result may take at most, estimated from below while walking (check the final text as well).
    Raises:
        Unencodable: a type that is not plain data, or nesting deeper than MAX_DEPTH (cycles included).
        TooLarge: more than `limit` bytes.
    """
    return _Encoder(limit).wire(value, 0)


class _Encoder:
    """Walks one value, with a byte budget that falls as it goes."""

    def __init__(self, limit: int) -> None:
        self._left = limit

    def wire(self, value: Any, depth: int) -> Wire:
        if depth > MAX_DEPTH:
            raise Unencodable(f"nested deeper than {MAX_DEPTH}, or cyclic")
        self._spend(1)
        if value is None or value is True or value is False:
            return value
        kind = type(value)
        for base, flatten in _FLATTEN:
            if kind is base or issubclass(kind, base):
                return flatten(self, value, depth)
        raise Unencodable(f"{kind.__name__} is not plain data")

    def _spend(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise TooLarge("value exceeds the output limit")

    def _int(self, value: int, depth: int) -> Wire:
        plain = int.__pos__(value)
        if -_SMALL < plain < _SMALL:
            return plain
        self._spend(plain.bit_length() // 4)
        return ["i", format(plain, "x")]

    def _float(self, value: float, depth: int) -> Wire:
        plain = float.__pos__(value)
        return plain if math.isfinite(plain) else ["f", str(plain)]

    def _str(self, value: str, depth: int) -> Wire:
        self._spend(str.__len__(value))
        return str.__str__(value)

    def _bytes(self, value: bytes, depth: int) -> Wire:
        self._spend(2 * bytes.__len__(value))
        return ["b", bytes.hex(value)]

    def _bytearray(self, value: bytearray, depth: int) -> Wire:
        self._spend(2 * bytearray.__len__(value))
        return ["b", bytearray.hex(value)]

    def _items(self, tag: str, items: Iterable[object], depth: int) -> Wire:
        return [tag, *(self.wire(item, depth + 1) for item in items)]

    def _list(self, value: list[object], depth: int) -> Wire:
        return self._items("l", list.__iter__(value), depth)

    def _tuple(self, value: tuple[object, ...], depth: int) -> Wire:
        return self._items("t", tuple.__iter__(value), depth)

    def _set(self, value: set[object], depth: int) -> Wire:
        return self._items("s", set.__iter__(value), depth)

    def _frozenset(self, value: frozenset[object], depth: int) -> Wire:
        return self._items("s", frozenset.__iter__(value), depth)

    def _dict(self, value: dict[object, object], depth: int) -> Wire:
        return self._items("d", (part for pair in dict.items(value) for part in pair), depth)


_FLATTEN: tuple[tuple[type, Callable[[_Encoder, Any, int], Wire]], ...] = (
    (int, _Encoder._int),
    (str, _Encoder._str),
    (float, _Encoder._float),
    (list, _Encoder._list),
    (tuple, _Encoder._tuple),
    (dict, _Encoder._dict),
    (set, _Encoder._set),
    (frozenset, _Encoder._frozenset),
    (bytes, _Encoder._bytes),
    (bytearray, _Encoder._bytearray),
)


def dump(wire: Wire) -> bytes:
    """A wire as ASCII JSON."""
    return json.dumps(wire, ensure_ascii=True, allow_nan=False, check_circular=False, separators=(",", ":")).encode()


def parse(payload: bytes) -> Wire:
    """Read a stranger's bytes as a wire. The caller has already bounded their number.

    Raises:
        BadWire: anything but well-formed typed JSON within the depth limit.
    """
    if payload.count(b"[") + payload.count(b"{") > MAX_DEPTH and _too_deep(payload):
        raise BadWire("nested too deep")
    try:
        wire = json.loads(payload.decode("ascii"), parse_constant=_refuse, parse_int=_small, object_pairs_hook=_refuse)
    except (ValueError, RecursionError) as error:
        raise BadWire(f"not typed JSON: {type(error).__name__}") from None
    _check(wire)
    return wire  # type: ignore[no-any-return]


def _too_deep(payload: bytes) -> bool:
    depth = 0
    for token in _STRUCTURE.finditer(payload):
        character = token[0]
        if character in b"[{":
            depth += 1
            if depth > MAX_DEPTH + 2:  # an envelope around a value of the greatest depth
                return True
        elif character in b"]}":
            depth -= 1
    return False


def _refuse(_: object) -> None:
    raise ValueError("not part of the format")


def _small(digits: str) -> int:
    if len(digits) > 16:
        raise ValueError("large integers travel in hexadecimal")
    return int(digits)


def _check(wire: Any) -> None:
    if not isinstance(wire, list):
        if isinstance(wire, float) and not math.isfinite(wire):  # 1e999 parses as infinity
            raise BadWire("float out of range")
        return
    tag = wire[0] if wire else None
    if tag in ("b", "i", "f"):
        _check_text(wire)
    elif tag in ("l", "t", "s") or (tag == "d" and len(wire) % 2):
        for item in wire[1:]:
            _check(item)
    else:
        raise BadWire("unknown tag")


_TEXT = {"b": re.compile(r"(?:[0-9a-f]{2})*"), "i": re.compile(r"-?[0-9a-f]+"), "f": re.compile(r"nan|-?inf")}


def _check_text(wire: list[Any]) -> None:
    if len(wire) != 2 or not isinstance(wire[1], str) or not _TEXT[wire[0]].fullmatch(wire[1]):
        raise BadWire("malformed tagged text")


def decode(wire: Wire, max_hashed: int | None = MAX_HASHED) -> Any:
    """Build the value a wire stands for.

    Args:
        wire: a checked wire, from `encode` or `parse`.
        max_hashed: refuse sets and dicts with more members than this; None for wires from a trusted sender.
    Raises:
        BadWire: a list as a key or set member, or more members than `max_hashed`.
    """
    if not isinstance(wire, list):
        return wire
    tag, items = wire[0], wire[1:]
    if tag in _TEXT:
        return _decode_text(tag, items[0])
    members = [decode(item, max_hashed) for item in items]
    if tag in ("l", "t"):
        return members if tag == "l" else tuple(members)
    if max_hashed is not None and len(members) > max_hashed * (2 if tag == "d" else 1):
        raise BadWire("too many members to hash")
    try:
        return _decode_hashed(tag, members)
    except TypeError:
        raise BadWire("a key or member that cannot be hashed") from None


def _decode_text(tag: str, text: str) -> bytes | int | float:
    if tag == "b":
        return bytes.fromhex(text)
    return int(text, 16) if tag == "i" else float(text)


def _decode_hashed(tag: str, members: list[Any]) -> object:
    if tag == "d":
        return dict(zip(map(_frozen, members[::2]), members[1::2], strict=True))
    return set(map(_frozen, members))


def _frozen(member: Any) -> Any:
    """Sets inside keys and members can only have been frozen ones."""
    if isinstance(member, tuple):
        return tuple(map(_frozen, member))
    return frozenset(member) if isinstance(member, set) else member
