"""The guest: load a program, call it on the inputs as they come, send what it returns as data.

This module's code shares a process with the program and is therefore worth nothing as evidence: the program may patch
all of it. That is fine, because nothing here knows an expected value or states a verdict.

The conversation, in frames (see `frames.py`): "sealed" from the guest; the job from the judge; "ready"; then for each
["input", args, kwargs] exactly one of ["value", wire], ["raised", type, text], ["oversize"]; the judge hangs up last.

Three kinds of job:
* ["program", source, entry]: model-written code;
* ["target", "module:function"]: our own function, for hostile text;
* ["checker", preamble, test, entry]: a data set's own assertions, never with model code in the process. Its `candidate`
  sends ["call", args, kwargs] and gets the answer that the program's guest gave elsewhere.
"""

import contextlib
import importlib
import mmap
import os
import random
import socket
import sys
import threading
import types
from collections.abc import Callable
from typing import Any

from . import values
from .frames import Link

_exit = os._exit  # before a program can replace it
_THREAD_STACK = 4 << 20  # every thread reserves this much of the address-space limit
_BALLAST = 2 << 20
_INPUT_LIMIT = 1 << 30  # inputs come from the judge, who bounds them

Function = Callable[..., object]


class Ballast:
    """Address space given back when memory runs out, so that there is enough left to say so. Never touched, so free."""

    def __init__(self) -> None:
        self._space: mmap.mmap | None = None
        self.refill()

    def drop(self) -> None:
        """Give it back."""
        if self._space is not None:
            self._space.close()
            self._space = None

    def refill(self) -> None:
        """Take it again, if there is any to take."""
        with contextlib.suppress(OSError, MemoryError):
            self._space = self._space or mmap.mmap(-1, _BALLAST, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


class CandidateFailed(Exception):
    """Raised in a checker when the program under test raised, or returned what is not plain data."""


def serve(channel: int, output_bytes: int) -> None:
    """Hold one conversation over the descriptor and exit. Never returns.

    Args:
        channel: the stream socket to the judge.
        output_bytes: the longest payload to send.
    """
    link = Link(socket.socket(fileno=channel))
    link.send(["sealed"])
    job = link.receive()
    ballast = Ballast()
    try:
        random.seed(0)  # equal programs give equal answers
        threading.stack_size(_THREAD_STACK)
        function = _load(job or [], link, output_bytes)
    except BaseException as error:
        ballast.drop()
        link.send(_raised(error))
        _exit(0)
    link.send(["ready"])
    while (message := link.receive()) is not None:
        if not link.send(_answer(function, message, output_bytes, ballast), output_bytes):
            link.send(["oversize"])
        ballast.refill()
    _exit(0)


def _load(job: list[Any], link: Link, output_bytes: int) -> Function:
    kind, *rest = job
    if kind == "program":
        return _entry(_execute(rest[0]), rest[1])
    if kind == "target":
        module, _, name = rest[0].partition(":")
        return _entry(vars(importlib.import_module(module)), name)
    preamble, test, entry = rest
    namespace = _execute(preamble + "\n" + test)
    check, candidate = _entry(namespace, "check"), _stub(link, output_bytes, entry)
    namespace[entry] = candidate  # some tests call it by its own name as well
    return lambda: check(candidate)


def _execute(source: str) -> dict[str, Any]:
    module = types.ModuleType("solution")
    sys.modules["solution"] = module  # dataclasses and typing look a class's module up by name
    exec(compile(source, "<solution>", "exec", dont_inherit=True), module.__dict__)
    return module.__dict__


def _entry(namespace: dict[str, Any], name: str) -> Function:
    if name not in namespace:
        raise NameError(f"{name} is not defined")
    if not callable(namespace[name]):
        raise TypeError(f"{name} is not a function")
    return namespace[name]  # type: ignore[no-any-return]


def _answer(function: Function, message: list[Any], output_bytes: int, ballast: Ballast) -> list[Any]:
    try:
        args, kwargs = (values.decode(part, max_hashed=None) for part in message[1:3])
        return ["value", values.encode(function(*args, **kwargs), output_bytes)]
    except values.TooLarge:
        return ["oversize"]
    except BaseException as error:
        ballast.drop()
        return _raised(error)


def _raised(error: BaseException) -> list[Any]:
    try:
        text = str(error)[:200]
    except BaseException:
        text = ""
    return ["raised", type(error).__name__[:100], text]


def _stub(link: Link, output_bytes: int, name: str) -> Function:
    def candidate(*args: object, **kwargs: object) -> object:
        wires = [values.encode(part, output_bytes) for part in (args, kwargs)]
        if not link.send(["call", *wires], output_bytes):
            raise CandidateFailed("arguments exceed the output limit")
        kind, *body = link.receive() or ["raised", "EOFError", "the program is gone"]
        if kind != "value":
            raise CandidateFailed(": ".join(body))
        return values.decode(body[0])

    candidate.__name__ = name
    return candidate
