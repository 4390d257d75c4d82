"""Values survive the trip, strangers' bytes do not get past the parser, and comparison means type and value."""

import contextlib
import math
import sys
import time
from collections import Counter, OrderedDict, namedtuple
from enum import IntEnum

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.sandbox import values
from envs.sandbox.compare import same
from envs.sandbox.values import BadWire, TooLarge, Unencodable, decode, dump, encode, parse

LIMIT = 1 << 20
scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(), st.integers(-(2**200), 2**200))
hashable = st.recursive(scalars, lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3), max_leaves=5)
plain = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.sets(hashable, max_size=4)
        | st.dictionaries(hashable, inner, max_size=4)
    ),
    max_leaves=12,
)


def wire(value: object) -> values.Wire:
    return encode(value, LIMIT)


@given(plain)
@settings(deadline=None, max_examples=60)
def test_round_trip(value: object) -> None:
    there = wire(value)
    back = parse(dump(there))
    assert same(back, there)
    assert same(wire(decode(back)), there)
    assert dump(back) == dump(there)


@given(plain, plain)
@settings(deadline=None, max_examples=60)
def test_comparison_is_symmetric(one: object, other: object) -> None:
    assert same(wire(one), wire(other)) == same(wire(other), wire(one))


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
@settings(deadline=None, max_examples=60)
def test_strangers_bytes_raise_one_error_or_parse(payload: bytes) -> None:
    try:
        wire_ = parse(payload)
    except BadWire:
        return
    decode(wire_)


class Colour(IntEnum):
    RED = 7


class Liar(list[int]):
    def __iter__(self):  # type: ignore[no-untyped-def]
        while True:
            yield 0

    def __len__(self) -> int:
        return 1 << 60

    def __eq__(self, other: object) -> bool:
        return True


@pytest.mark.parametrize(
    ("value", "flat"),
    [
        (Colour.RED, 7),
        (Liar([1, 2]), [1, 2]),
        (Counter("aab"), {"a": 2, "b": 1}),
        (OrderedDict(x=1), {"x": 1}),
        (namedtuple("P", "x y")(1, 2), (1, 2)),
        (frozenset({1}), {1}),
        (bytearray(b"ab"), b"ab"),
    ],
)
def test_subclasses_are_flattened(value: object, flat: object) -> None:
    assert wire(value) == wire(flat)


@pytest.mark.parametrize("value", [object(), 1j, range(3), iter([]), print, type, ...])
def test_other_types_are_refused(value: object) -> None:
    with pytest.raises(Unencodable):
        wire([value])


def test_cycles_and_depth_are_refused() -> None:
    cycle: list[object] = []
    cycle.append(cycle)
    with pytest.raises(Unencodable):
        wire(cycle)
    deep: object = 1
    for _ in range(values.MAX_DEPTH):
        deep = [deep]
    assert same(parse(dump(wire(deep))), wire(deep))
    with pytest.raises(Unencodable):
        wire([deep])


@pytest.mark.parametrize(
    "value",
    ["x" * 2000, b"x" * 2000, 1 << 20_000, [1] * 2000, {i: i for i in range(2000)}],
    ids=lambda value: type(value).__name__,
)
def test_size_is_bounded(value: object) -> None:
    with pytest.raises(TooLarge):
        encode(value, 1000)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"[",
        b"[]",
        b"{}",
        b'{"l":1}',
        b'["x",1]',
        b"[1]",
        b"[null]",
        b'["d",1]',
        b'["b"]',
        b'["b","0"]',
        b'["b","zz"]',
        b'["b",["l"]]',
        b'["i","1.5"]',
        b'["i",""]',
        b'["f","1.0"]',
        b'["f","nan","inf"]',
        b"NaN",
        b"Infinity",
        b"1e999",
        b"99999999999999999999",
        b"1 2",
        b'"\xff"',
        b"\xef\xbb\xbf1",
        b"[" * 200_000,
        b'["l",' * 150 + b"1" + b"]" * 150,
        b'{"a":' * 100_000,
    ],
    ids=lambda payload: repr(payload[:16]),
)
def test_malformed_payloads_are_refused(payload: bytes) -> None:
    with pytest.raises(BadWire):
        parse(payload)


def test_depth_is_refused_even_under_a_raised_recursion_limit() -> None:
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(1_000_000)
    try:
        with pytest.raises(BadWire):
            parse(b'["l",' * 50_000)
    finally:
        sys.setrecursionlimit(before)


@pytest.mark.parametrize(
    "payload",
    [
        b'["l"' + b",[]" * 87_000 + b"]",
        b'["l"' + b',["l"]' * 43_000 + b"]",
        b"[" * 262_144,
        b'["i","' + b"f" * 262_000 + b'"]',
    ],
)
def test_the_worst_payloads_cost_little(payload: bytes) -> None:
    started = time.process_time()
    with contextlib.suppress(BadWire):
        decode(parse(payload))
    assert time.process_time() - started < 2.0


def test_colliding_keys_are_never_hashed_by_the_judge() -> None:
    """As a set these would take seconds to build."""
    hostile = ["s", *(["i", format(k * (2**61 - 1), "x")] for k in range(1, 10_000))]
    started = time.process_time()
    assert not same(hostile, wire(set(range(9_999))))
    assert time.process_time() - started < 2.0
    with pytest.raises(BadWire, match="too many"):
        decode(hostile)


def test_unhashable_members_are_refused() -> None:
    for bad in (["s", ["l"]], ["d", ["d"], 1]):
        with pytest.raises(BadWire, match="hashed"):
            decode(bad)


nan, inf = math.nan, math.inf


@pytest.mark.parametrize(
    ("actual", "expected", "tolerance"),
    [
        (1, 1, None),
        (2**70, 2**70, None),
        (0.1 + 0.2, 0.30000000000000004, None),
        (-0.0, 0.0, None),
        (nan, nan, None),
        (inf, inf, None),
        (inf, inf, 1.0),
        (1.0, 1, 0.0),
        (1, 1.0, 0.0),
        (1.05, 1, 0.1),
        ([1.0, (2.0,)], [1, (2,)], 0.0),
        ({1: 2.0}, {1.0: 2}, 0.0),
        ({1.0}, {1}, 0.0),
        ({2**70}, {float(2**70)}, 0.0),
        ({(1, frozenset({2, 3}))}, {(1, frozenset({3, 2}))}, None),
        ({"b": 1, "a": 2}, {"a": 2, "b": 1}, None),
        ({-0.0}, {0.0}, None),
    ],
)
def test_same(actual: object, expected: object, tolerance: float | None) -> None:
    assert same(wire(actual), wire(expected), tolerance)


@pytest.mark.parametrize(
    ("actual", "expected", "tolerance"),
    [
        (1, 1.0, None),
        (True, 1, None),
        (True, 1, 0.0),
        (1, True, 5.0),
        (0, None, 0.0),
        ("1", 1, 5.0),
        (b"a", "a", None),
        ([1], (1,), None),
        ([1], {1}, None),
        ({1}, {1: 1}, None),
        ([1, 2], [1], None),
        ([1], [1, 2], None),
        ({1.0}, {1}, None),
        ({True}, {1}, 0.0),
        ({1: 2}, {1: 3}, None),
        ({1: 2}, {2: 2}, None),
        (nan, 1.0, 1e9),
        (1.0, nan, 1e9),
        (inf, 1.0, 1e9),
        (1.2, 1.0, 0.1),
        (10**400, 1.0, 1.0),
        (1.0, 10**400, 1.0),
        ("", [], None),
        ("a\n", "a", None),
    ],
)
def test_not_same(actual: object, expected: object, tolerance: float | None) -> None:
    assert not same(wire(actual), wire(expected), tolerance)
