"""The words the sandbox speaks: limits that go in, verdicts that come out, and the ways the machinery itself can fail.

A verdict is about the program. A fault is about the machinery, and is an exception, so that it can never be added up
as a zero. Only `Verdict.PASS` earns reward.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Verdict(StrEnum):
    """What became of a test, or of a whole program."""

    PASS = "pass"  # the output equals the expected value in type and value
    WRONG = "wrong"  # an output came back, and it is another one
    ERROR = "error"  # the program raised, would not compile, or returned something that is not plain data
    TIMEOUT = "timeout"  # processor time, or the wall-clock backstop, used up
    MEMORY = "memory"  # the address-space limit was hit
    OUTPUT_LIMIT = "output_limit"  # the returned value is larger than the output limit
    CRASH = "crash"  # the interpreter died of a signal such as SIGSEGV
    VIOLATION = "violation"  # killed by the system-call filter for an escape call
    PROTOCOL = "protocol"  # early exit, or bytes on the channel that are not exactly one frame per test
    INFRA = "infra"  # the machinery failed, after retries; says nothing about the program


class SandboxFault(RuntimeError):
    """The machinery failed, after retries. Drop the sample and count the fault; it is not a wrong answer."""


class SandboxUnavailable(RuntimeError):
    """This machine cannot isolate programs as strongly as the caller requires; the message says what to change."""


class CallError(RuntimeError):
    """A function run by `Sandbox.call` raised, ran out of a limit, or died; `verdict` says which."""

    def __init__(self, verdict: Verdict, detail: str) -> None:
        super().__init__(f"{verdict}: {detail}" if detail else str(verdict))
        self.verdict = verdict
        self.detail = detail


@dataclass(frozen=True)
class Limits:
    """Bounds on one run of one program, all its tests together.

    Processor time is the limit that programs meet. The wall clock only catches sleepers: it counts the time in which
    the program neither ran nor waited for a processor (see `server.py`), so a busy machine does not use it up.

    Args:
        cpu_seconds: processor time, all threads together; fractions count.
        memory_mb: address space above what the warm interpreter already occupies.
        output_bytes: the largest frame, so about the largest return value, the judge will read.
        processes: tasks (threads) alive at once; forking is denied altogether in the strong tiers.
        open_files: descriptors open at once.
        wall_seconds: the backstop; None means ten times `cpu_seconds`.
    Raises:
        ValueError: a bound is not positive and finite.
    """

    cpu_seconds: float = 2.0
    memory_mb: int = 256
    output_bytes: int = 262_144
    processes: int = 32
    open_files: int = 32
    wall_seconds: float | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(f"Limits.{name} must be positive and finite, got {value!r}")

    @property
    def wall(self) -> float:
        """The backstop in seconds."""
        return 10.0 * self.cpu_seconds if self.wall_seconds is None else self.wall_seconds


@dataclass(frozen=True)
class Test:
    """One hidden test: call the entry function with these arguments and compare what comes back.

    Args:
        args: positional arguments, plain data only.
        kwargs: keyword arguments, plain data only.
        expected: the right value; it never leaves the judge's process.
        tolerance: None compares by type and value (1.0 is not 1). A number lets int and float stand for each other and
            allows that absolute difference (0.0: as Python's `==` does, but True is still not 1).
    """

    __test__ = False  # pytest would otherwise try to collect this class

    args: tuple[object, ...] = ()
    kwargs: Mapping[str, object] = field(default_factory=dict)
    expected: object = None
    tolerance: float | None = None


@dataclass(frozen=True)
class Job:
    """One program and its tests, for `Sandbox.run_many`."""

    source: str
    entry: str
    tests: tuple[Test, ...]


@dataclass(frozen=True)
class Report:
    """What became of one program.

    `verdict` is `pass` only when every test passed, otherwise the first one that did not. When a run ends early, the
    tests it never answered carry the verdict that ended it. `detail` is text for people: parts of it come from the
    program, so never parse it.
    """

    verdict: Verdict
    tests: tuple[Verdict, ...]
    cpu_seconds: float
    wall_seconds: float
    detail: str = ""

    @property
    def passed(self) -> float:
        """Share of tests passed, in [0, 1].

        Raises:
            SandboxFault: the verdict is `infra`; no share exists, and 0 would be a lie.
        """
        if self.verdict is Verdict.INFRA:
            raise SandboxFault(self.detail)
        return self.tests.count(Verdict.PASS) / len(self.tests)
