"""Names of the layers of isolation, and what a set of them amounts to. No system calls: importable anywhere.

Design rule: seccomp plus one wall for files is the least that counts as strong. Which layers hold which attacks was
measured by leaving each of them out in turn; the attack suite in `tests/envs/sandbox/` does it again.
"""

from enum import IntEnum

FEATURES = ("namespaces", "landlock", "seccomp")

# What model-written functions import most, so that a run need not read it from disk.
PRELOAD = (
    *("abc", "array", "bisect", "collections", "collections.abc", "copy", "dataclasses", "datetime", "decimal", "enum"),
    *("fractions", "functools", "hashlib", "heapq", "io", "itertools", "json", "math", "operator", "random", "re"),
    *("statistics", "string", "textwrap", "time", "types", "typing"),
)
# Without any wall for files the filter denies opening them: what is to be importable must be loaded beforehand.
SEALED_PRELOAD = (
    *PRELOAD,
    *("asyncio", "base64", "binascii", "calendar", "cmath", "colorsys", "concurrent.futures.thread", "contextlib"),
    *("contextvars", "csv", "difflib", "fnmatch", "graphlib", "html", "inspect", "ipaddress", "keyword", "locale"),
    *("logging", "numbers", "pickle", "pprint", "queue", "reprlib", "resource", "secrets", "shlex", "socket", "struct"),
    *("threading", "timeit", "traceback", "unicodedata", "unittest", "urllib.parse", "uuid", "warnings", "weakref"),
    *("zlib",),
)


class Strength(IntEnum):
    """How much a tier holds; `Sandbox(require=...)` takes these names in lower case."""

    NONE = 0
    DEGRADED = 1
    STRONG = 2


def strength(features: frozenset[str]) -> Strength:
    """What a set of layers amounts to."""
    if "seccomp" not in features:
        return Strength.NONE
    return Strength.STRONG if features & {"namespaces", "landlock"} else Strength.DEGRADED


def tier_name(features: frozenset[str]) -> str:
    """For logs: the layers joined by "+", or "rlimits" when there is no other."""
    return "+".join(name for name in FEATURES if name in features) or "rlimits"
