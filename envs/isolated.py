"""The one sandbox of a process, and what the graders have done in it.

It is started at the first grading that needs it and closed at exit. A fork of the process gets one of its own.
"""

import atexit
import functools
import os
from typing import Any

from envs.sandbox import CallError, Limits, Sandbox, SandboxFault, Verdict

LIBRARY_LIMITS = Limits(cpu_seconds=2.0, memory_mb=512, wall_seconds=60.0)


def sandbox() -> Sandbox:
    """The sandbox of this process."""
    return _sandbox_of(os.getpid())


@functools.cache
def _sandbox_of(process: int) -> Sandbox:
    made = Sandbox(preload=("envs.killable",))
    atexit.register(made.close)
    return made


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


def _call(target: str, *texts: str) -> Any:
    try:
        return sandbox().call(target, texts, limits=LIBRARY_LIMITS)
    except CallError as error:
        if error.verdict is Verdict.ERROR:  # what an answer can bring about is caught inside: the installation is at fault
            raise SandboxFault(f"{target}: {error.detail}") from error
        return False
