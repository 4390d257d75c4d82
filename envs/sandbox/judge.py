"""The judge's side of one run: hand over a program, feed it inputs one at a time, compare the outputs, give verdicts.

Design rule: expected values stay in this process, and nothing the guest sends is evidence of anything but its own
value. How the guest ended is what the kernel told the server; an exit status never earns reward.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from . import values
from .channel import Ending
from .compare import same
from .conversation import Conversation, Verdicted, describe, raised
from .records import CallError, Limits, Report, Test, Verdict
from .worker import Worker

_INPUT_LIMIT = 64 << 20
_MAX_SOURCE = 1 << 20
_MAX_CALLS = 10_000  # of the candidate, by one checker


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
        try:
            _start_checker(assertions, ["checker", preamble, test, entry])
            program.start(["program", _bounded(source), entry])
            verdict, detail = _relay(program, assertions)
            program.finish()
        except Verdicted as early:
            verdict, detail = early.verdict, early.detail
        finally:  # also when the assertions do not load: the servers are then free for the next run
            ending = solving.finish()
            checking.finish()
        return _report([verdict], ending, [detail])


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
        return Verdict.WRONG, describe(body)
    return _failure(kind, body)


def _judge(message: list[Any], expected: values.Wire, tolerance: float | None) -> tuple[Verdict, str]:
    kind, *body = message
    if kind == "value":
        right = same(body[0], expected, tolerance)
        return (Verdict.PASS, "") if right else (Verdict.WRONG, "another value")
    return _failure(kind, body)


def _failure(kind: str, body: list[Any]) -> tuple[Verdict, str]:
    if kind == "oversize":
        return Verdict.OUTPUT_LIMIT, "value beyond the limit"
    if kind == "raised":
        return raised(body), describe(body)
    raise Verdicted(Verdict.PROTOCOL, f"{kind} in place of a value")


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
