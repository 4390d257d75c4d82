"""The judge's side of one run: hand over a program, feed it inputs one at a time, compare the outputs, give verdicts.

Design rule: expected values stay in this process, and nothing the guest sends is evidence of anything but its own
value. How the guest ended is what the kernel told the server; an exit status never earns reward.
"""

import signal
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from . import values
from .records import CallError, Limits, Report, Test, Verdict
from .worker import Channel, EarlyBytes, Ending, FrameTooLong, Worker, WorkerLost

_ENVELOPE = 64  # bytes of a frame around the value
_INPUT_LIMIT = 64 << 20
_MAX_SOURCE = 1 << 20
_MAX_CALLS = 10_000  # of the candidate, by one checker
_KILLED = 9
_BY_SIGNAL = {"SIGSYS": Verdict.VIOLATION, "SIGXCPU": Verdict.TIMEOUT}


class Verdicted(Exception):
    """The conversation is over early, with this verdict."""

    def __init__(self, verdict: Verdict, detail: str = "") -> None:
        super().__init__(verdict)
        self.verdict = verdict
        self.detail = detail


class Conversation:
    """One guest, from its first frame to its end, in the terms of the protocol in `guest.py`."""

    def __init__(self, channel: Channel, limits: Limits) -> None:
        self._channel = channel
        self._limit = limits.output_bytes + _ENVELOPE
        self._memory = limits.memory_mb << 20

    def start(self, job: list[Any]) -> None:
        """Hand the job to a guest that has said it is sealed, and wait until it has loaded it.

        Raises:
            Verdicted: the program did not load.
            WorkerLost: the guest was never sealed, so nothing of the program has run.
        """
        if self._channel.receive(self._limit) is None:
            raise WorkerLost(f"guest could not be sealed: {self._channel.finish()}")
        kind, *body = self.ask(job)
        if kind == "raised":
            raise Verdicted(_raised(body), _describe(body))
        if kind != "ready":
            raise Verdicted(Verdict.PROTOCOL, f"{kind} before the first input")

    def ask(self, message: list[Any]) -> list[Any]:
        """Send one frame and take exactly one in return.

        Raises:
            Verdicted: the guest ended, or broke the protocol.
            WorkerLost: the machinery failed.
        """
        try:
            payload = self._channel.receive(self._limit) if self._channel.send(message) else None
        except EarlyBytes:
            raise Verdicted(Verdict.PROTOCOL, "bytes out of turn") from None
        except FrameTooLong:
            raise Verdicted(Verdict.OUTPUT_LIMIT, "frame beyond the limit") from None
        if payload is None:
            raise self._ended()
        return _message(payload)

    def finish(self) -> Ending:
        """End the conversation after its last frame.

        Raises:
            Verdicted: the guest sent more, or went on until a limit stopped it.
            WorkerLost: the machinery failed.
        """
        if not self._channel.hang_up():
            raise Verdicted(Verdict.PROTOCOL, "bytes after the last output")
        ending = self._channel.finish()
        if ending.reason in ("cpu", "wall"):
            raise Verdicted(Verdict.TIMEOUT, f"{ending.reason} limit, after the last output")
        return ending

    def _ended(self) -> Verdicted:
        """Why a guest that owed us a frame is gone."""
        ending = self._channel.finish()
        if ending.reason in ("cpu", "wall"):
            return Verdicted(Verdict.TIMEOUT, f"{ending.reason} limit")
        if ending.reason == "starved":
            raise WorkerLost("the machine is too busy to give the program its processor time")
        number = ending.status & 0x7F
        if number == 0 or (number == _KILLED and ending.reason):
            return Verdicted(Verdict.PROTOCOL, "left without answering")
        if number == _KILLED:
            return self._killed(ending)
        name = signal.Signals(number).name
        return Verdicted(_BY_SIGNAL.get(name, Verdict.CRASH), name)

    def _killed(self, ending: Ending) -> Verdicted:
        """Neither we nor, by the filter, the guest itself did it: its own limits, or the kernel short of memory."""
        if ending.peak_bytes > 0.9 * self._memory:
            return Verdicted(Verdict.MEMORY, "killed at the memory limit")
        raise WorkerLost("the guest was killed from outside, as by a kernel short of memory")


def grade(worker: Worker, source: str, entry: str, tests: Sequence[Test], limits: Limits) -> Report:
    """Run a program on every test.

    Raises:
        TypeError, ValueError: a test's arguments or expected value are not plain data, or are too large.
        WorkerLost: the machinery failed; the worker must not be used again.
    """
    prepared = [(_input(test), values.encode(test.expected, _INPUT_LIMIT), test.tolerance) for test in tests]
    verdicts: list[Verdict] = []
    details: list[str] = []
    with worker.open(limits) as channel:
        conversation = Conversation(channel, limits)
        try:
            conversation.start(["program", _bounded(source), entry])
            for message, expected, tolerance in prepared:
                verdict, detail = _judge(conversation.ask(message), expected, tolerance)
                verdicts.append(verdict)
                details += [detail] if detail else []
            conversation.finish()
        except Verdicted as early:
            details.insert(0, early.detail)
            verdicts = _fill(verdicts, early.verdict, len(prepared))
        return _report(verdicts, channel.finish(), details)


def check(solver: Worker, checker: Worker, job: tuple[str, str, str, str], limits: Limits) -> Report:
    """Run a data set's own assertions in one guest against a program in another.

    Args:
        solver: runs the program.
        checker: runs the assertions; its guest never sees model code, only values.
        job: the program's source, its entry function, the assertions (a function `check(candidate)`), and trusted
        source that the assertions may refer to.
        limits: for each of the two guests.
    Raises:
        ValueError: the assertions themselves do not load.
        WorkerLost: the machinery failed; neither worker must be used again.
    """
    source, entry, test, preamble = job
    with ExitStack() as stack:
        solving, checking = (stack.enter_context(worker.open(limits)) for worker in (solver, checker))
        program, assertions = Conversation(solving, limits), Conversation(checking, limits)
        detail = ""
        try:
            _start_checker(assertions, ["checker", preamble, test, entry])
            program.start(["program", _bounded(source), entry])
            verdict, detail = _relay(program, assertions)
            program.finish()
        except Verdicted as early:
            verdict, detail = early.verdict, early.detail
        checking.finish()
        return _report([verdict], solving.finish(), [detail])


def call(worker: Worker, target: str, test: Test, limits: Limits) -> Any:
    """Run one of our own functions on hostile text and return its value.

    Raises:
        CallError: it raised, ran out of a limit, or returned what is not plain data.
        WorkerLost: the machinery failed; the worker must not be used again.
    """
    message = _input(test)
    with worker.open(limits) as channel:
        conversation = Conversation(channel, limits)
        try:
            conversation.start(["target", target])
            kind, *body = conversation.ask(message)
            conversation.finish()
        except Verdicted as early:
            channel.finish()
            raise CallError(early.verdict, early.detail) from None
    if kind != "value":
        raise CallError(*_failure(kind, body))
    try:
        return values.decode(body[0])
    except values.BadWire as error:
        raise CallError(Verdict.PROTOCOL, str(error)) from None


def _start_checker(assertions: Conversation, job: list[Any]) -> None:
    try:
        assertions.start(job)
    except Verdicted as early:
        raise ValueError(f"the assertions do not load: {early.verdict}: {early.detail}") from None


def _relay(program: Conversation, assertions: Conversation) -> tuple[Verdict, str]:
    """Carry the assertions' calls to the program and its answers back, until the assertions have made up their mind."""
    nothing = [values.encode((), 100), values.encode({}, 100)]
    kind, *body = assertions.ask(["input", *nothing])
    for _ in range(_MAX_CALLS):
        if kind != "call":
            break
        answer, *content = program.ask(["input", *body])
        answer, content = ("raised", ["OverflowError", "oversize"]) if answer == "oversize" else (answer, content)
        kind, *body = assertions.ask([answer, *content])
    if kind == "value":
        return Verdict.PASS, ""
    if kind == "raised" and body[0] == "AssertionError":
        return Verdict.WRONG, _describe(body)
    return _failure(kind, body)


def _message(payload: bytes) -> list[Any]:
    """Take a payload apart: the kind of message, then strings or checked wires."""
    try:
        return _split(payload)
    except (values.BadWire, ValueError) as error:
        raise Verdicted(Verdict.PROTOCOL, f"malformed frame: {error}") from None


def _split(payload: bytes) -> list[Any]:
    for kind, parts in _SHAPES.items():
        prefix = f'["{kind}"'.encode()
        if payload.startswith(prefix):
            # The envelope is read as a list of the typed format itself, so one parser checks everything.
            body: list[Any] = values.parse(b'["l"' + payload[len(prefix) :])[1:]  # type: ignore[index,assignment]
            if len(body) != parts or (kind == "raised" and not all(isinstance(part, str) for part in body)):
                raise ValueError("wrong parts")
            return [kind, *body]
    raise ValueError("unknown kind")


_SHAPES = {"value": 1, "raised": 2, "oversize": 0, "ready": 0, "call": 2}


def _judge(message: list[Any], expected: values.Wire, tolerance: float | None) -> tuple[Verdict, str]:
    kind, *body = message
    if kind == "value":
        right = values.same(body[0], expected, tolerance)
        return (Verdict.PASS, "") if right else (Verdict.WRONG, "another value")
    return _failure(kind, body)


def _failure(kind: str, body: list[Any]) -> tuple[Verdict, str]:
    if kind == "oversize":
        return Verdict.OUTPUT_LIMIT, "value beyond the limit"
    if kind == "raised":
        return _raised(body), _describe(body)
    raise Verdicted(Verdict.PROTOCOL, f"{kind} in place of a value")


def _raised(body: list[Any]) -> Verdict:
    return Verdict.MEMORY if body[0] == "MemoryError" else Verdict.ERROR


def _describe(body: list[Any]) -> str:
    """Printable ASCII: the text is the program's, and ends up in logs."""
    return ascii(": ".join(part for part in body if part))[1:-1][:300]


def _fill(verdicts: list[Verdict], early: Verdict, count: int) -> list[Verdict]:
    """The tests never answered end as the run did; a broken protocol voids those before it as well."""
    kept = [] if early is Verdict.PROTOCOL or len(verdicts) == count else verdicts
    return kept + [early] * (count - len(kept))


def _report(verdicts: list[Verdict], ending: Ending, details: list[str]) -> Report:
    overall = next((verdict for verdict in verdicts if verdict is not Verdict.PASS), Verdict.PASS)
    return Report(overall, tuple(verdicts), ending.cpu, ending.wall, next(filter(None, details), ""))


def _input(test: Test) -> list[Any]:
    return ["input", *(values.encode(part, _INPUT_LIMIT) for part in (test.args, dict(test.kwargs)))]


def _bounded(source: str) -> str:
    if len(source) > _MAX_SOURCE:
        raise Verdicted(Verdict.ERROR, "source longer than 1 MiB")
    return source
