"""The protocol of one run from the judge's side, and what each way of breaking it amounts to.

Design rule: nothing the guest sends is evidence of anything but its own value. How it ended is what the kernel told the
server, and an exit status never earns reward.
"""

import signal
from typing import Any

from . import values
from .channel import Channel, EarlyBytes, Ending, FrameTooLong, TooIdle, WorkerLost
from .records import Limits, Verdict

_ENVELOPE = 64  # bytes of a frame around the value
_KILLED = 9
_BY_SIGNAL = {"SIGSYS": Verdict.VIOLATION, "SIGXCPU": Verdict.TIMEOUT}
_SHAPES = {"value": 1, "raised": 2, "oversize": 0, "ready": 0, "call": 2}  # kind of message → parts after it


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
            raise WorkerLost(f"guest could not be sealed: {self._channel.finish(gone=True)}")
        kind, *body = self.ask(job)
        if kind == "raised":
            raise Verdicted(raised(body), describe(body))
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
        except TooIdle:
            raise Verdicted(Verdict.TIMEOUT, "wall limit") from None
        except EarlyBytes:
            raise Verdicted(Verdict.PROTOCOL, "bytes out of turn") from None
        except FrameTooLong:
            raise Verdicted(Verdict.OUTPUT_LIMIT, "frame beyond the limit") from None
        if payload is None:
            raise self._ended()
        return read_message(payload)

    def finish(self) -> Ending:
        """End the conversation after its last frame.

        Raises:
            Verdicted: the guest sent more, or went on until a limit stopped it.
            WorkerLost: the machinery failed.
        """
        if not self._channel.hang_up():
            raise Verdicted(Verdict.PROTOCOL, "bytes after the last output")
        ending = self._channel.finish(gone=True)
        if ending.reason == "cpu":
            raise Verdicted(Verdict.TIMEOUT, "cpu limit, after the last output")
        return ending

    def _ended(self) -> Verdicted:
        """Why a guest that owed us a frame is gone."""
        ending = self._channel.finish(gone=True)
        if ending.reason == "cpu":
            return Verdicted(Verdict.TIMEOUT, "cpu limit")
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


def read_message(payload: bytes) -> list[Any]:
    """Take a guest's payload apart: the kind of message, then strings or checked wires.

    Raises:
        Verdicted: it is none of the messages a guest may send.
    """
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


def raised(body: list[Any]) -> Verdict:
    """The verdict on an exception the guest reported."""
    return Verdict.MEMORY if body[0] == "MemoryError" else Verdict.ERROR


def describe(body: list[Any]) -> str:
    """Printable ASCII: the text is the program's, and ends up in logs."""
    return ascii(": ".join(part for part in body if part))[1:-1][:300]
