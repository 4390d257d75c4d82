"""The sandboxes of a process, and what the graders have done in it.

One is started when an environment that needs it is prepared, or at the first grading that does, and closed at exit. A fork of the
process gets its own.
"""

import atexit
import functools
import os
from collections.abc import Mapping
from typing import Any

from envs.sandbox import CallError, Limits, Sandbox, SandboxFault, Verdict

LIBRARY_LIMITS = Limits(cpu_seconds=2.0, memory_mb=512, wall_seconds=60.0)
SCORER_LIMITS = Limits(cpu_seconds=10.0, memory_mb=1024, wall_seconds=100.0)
PROGRAMS = "envs.killable"  # what the guests of the usual sandbox know besides the standard library
_TIERS = ("none", "degraded", "strong")
_required: dict[str, str] = {"isolation": "strong"}


def require(isolation: str) -> None:
    """The weakest tier to accept from now on. ValueError for a name that is none."""
    if isolation not in _TIERS:
        raise ValueError(f"isolation must be one of {', '.join(_TIERS)}, not {isolation!r}")
    _required["isolation"] = isolation


def sandbox(module: str = PROGRAMS) -> Sandbox:
    """The sandbox of this process whose guests have imported `module`. SandboxUnavailable if this machine is too weak."""
    return _sandbox_of(os.getpid(), module, _required["isolation"])


@functools.cache
def _sandbox_of(process: int, module: str, isolation: str) -> Sandbox:
    made = Sandbox(preload=(module,), require=isolation)
    atexit.register(made.close)
    return made


def reasoning_score(task: str, answer: str, entry: Mapping[str, Any]) -> float:
    """reasoning-gym's reward for an answer; 0 if its scorer met a limit. SandboxFault if the machinery failed."""
    return float(_call("envs.reasoning_scorer:score", task, answer, dict(entry), limits=SCORER_LIMITS))


@functools.lru_cache(4096)
def same_expression(gold: str, answer: str) -> bool | None:
    """Whether two mathematical expressions are equal; None if the answer is none. An answer that meets a limit is not equal.

    Raises:
        SandboxFault: the machinery failed; says nothing about the answer.
    """
    result: bool | None = _call("envs.killable:same_expression", gold, answer)
    return result


def found(pattern: str, text: str) -> bool:
    """Whether a regular expression is found in a text; False if the search takes longer than the limit. SandboxFault as above."""
    return bool(_call("envs.killable:found", pattern, text))


def _call(target: str, *values: Any, limits: Limits | None = None) -> Any:
    try:
        return sandbox(target.partition(":")[0]).call(target, values, limits=limits or LIBRARY_LIMITS)
    except CallError as error:
        if error.verdict is Verdict.ERROR:  # what an answer can bring about is caught inside: the installation is at fault
            raise SandboxFault(f"{target}: {error.detail}") from error
        return False
