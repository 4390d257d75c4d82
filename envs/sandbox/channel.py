"""The judge's end of one run: frames out, frames in, strictly in turns, without ever waiting on the guest alone.

Design rule: nothing here blocks without a bound. Every wait is for the guest or for news from its server, and the
server gives news every second; silence means the machinery is broken.
"""

import select
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from .frames import HEADER, pack

RUN_PATIENCE = 30.0  # without a sign of life; the server gives one a second
_GOODBYE = 0.25
_CHUNK = 1 << 16


class WorkerLost(Exception):
    """The server died, fell silent, or could not do its part; says nothing about the program."""


class FrameTooLong(Exception):
    """The guest announced a frame beyond the limit."""


class TooIdle(Exception):
    """It is the guest's turn, and it has neither run nor waited for a processor for as long as the backstop allows."""


class EarlyBytes(Exception):
    """The guest sent something while it was the judge's turn."""


@dataclass(frozen=True)
class Ending:
    """How the server says a guest ended; see `server.Usage`."""

    reason: str
    status: int
    cpu: float
    wall: float
    peak_bytes: int


class Server(Protocol):
    """What a channel needs of the worker it came from; see `worker.Worker`."""

    def fileno(self) -> int:
        """For polling."""

    def stop(self) -> None:
        """Ask for the guest's end."""

    def news(self) -> "Ending | bool":
        """Wait for the server to speak: the guest's ending, or whether the guest has been idle too long."""


class Channel:
    """The judge's end of one run. Strictly in turns: send a frame, receive a frame.

    Use as a context manager; leaving it closes the socket but does not wait for the guest (see `finish`).
    """

    def __init__(self, sock: socket.socket, server: Server) -> None:
        self._sock = sock
        self._sock.setblocking(False)
        self._server = server
        self._buffer = bytearray()
        self._ending: Ending | None = None

    def __enter__(self) -> "Channel":
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.close()

    def send(self, message: list[Any]) -> bool:
        """Send one frame; False when the guest has gone.

        Raises:
            EarlyBytes: the guest spoke out of turn.
            WorkerLost: the machinery failed.
        """
        rest = memoryview(pack(message))
        if self._buffer or (poll({self._sock.fileno(): select.POLLIN}, 0) and self._more()):
            raise EarlyBytes
        while rest:
            try:
                rest = rest[self._sock.send(rest) :]
            except BlockingIOError:
                if self._wait(select.POLLIN | select.POLLOUT) & select.POLLIN and self._more():
                    raise EarlyBytes from None
            except OSError:
                return False
        return True

    def receive(self, limit: int) -> bytes | None:
        """The next frame's payload, or None when the guest has gone without one.

        Args:
            limit: bytes of payload to accept.
        Raises:
            FrameTooLong: the guest announced more; its bytes are not read.
            TooIdle: it keeps us waiting.
            WorkerLost: the machinery failed.
        """
        payload = None
        self._listen()
        if self._fill(HEADER.size):
            (size,) = HEADER.unpack_from(self._buffer)
            if size > limit:
                raise FrameTooLong
            if self._fill(HEADER.size + size):
                payload = bytes(self._buffer[HEADER.size : HEADER.size + size])
                del self._buffer[: HEADER.size + size]
        return payload

    def hang_up(self) -> bool:
        """Finish the conversation from our side; True when the guest then left without another byte.

        Raises:
            WorkerLost: the machinery failed.
        """
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError:
            return not self._buffer
        self._listen()
        try:
            return not self._fill(1)
        except TooIdle:
            return True  # it has said all we asked for; how it leaves is no matter

    def finish(self, gone: bool = False) -> Ending:
        """Have the guest killed if it still lives, and say how it ended.

        Args:
            gone: the guest has closed its end, so it is probably dead by itself. Its server is given a moment to say of
                what, which killing it first could blur.
        Raises:
            WorkerLost: the machinery failed.
        """
        if self._ending is None and gone and poll({self._server.fileno(): select.POLLIN}, _GOODBYE):
            self._hear()
        if self._ending is None:
            self._server.stop()
        while self._ending is None:
            self._hear()
        return self._ending

    def _hear(self) -> bool:
        """Take the server's next message; True when it says that the guest has been idle too long."""
        news = self._server.news()
        if isinstance(news, bool):
            return news
        self._ending = news
        return False

    def _listen(self) -> None:
        """At the start of the guest's turn: take what the server said before, which was about our own turn."""
        while self._ending is None and poll({self._server.fileno(): select.POLLIN}, 0):
            self._hear()

    def _fill(self, size: int) -> bool:
        """Read until the buffer holds `size` bytes; False at end of file."""
        while len(self._buffer) < size:
            if self._wait(select.POLLIN) and not self._more():
                return False
        return True

    def _more(self) -> bool:
        """Take what has arrived; False at end of file."""
        try:
            chunk = self._sock.recv(_CHUNK)
        except BlockingIOError:
            return True
        except OSError:  # reset: it left with our bytes unread
            return False
        self._buffer += chunk
        return bool(chunk)

    def _wait(self, events: int) -> int:
        """Wait for the guest; on the way, listen to the server. Returns the guest's events, 0 for none yet."""
        wanted = {self._sock.fileno(): events}
        if self._ending is None:
            wanted[self._server.fileno()] = select.POLLIN
        happened = poll(wanted, RUN_PATIENCE)
        if not happened:
            raise WorkerLost(f"no sign of life for {RUN_PATIENCE:g} s")
        if self._sock.fileno() in happened:
            return happened[self._sock.fileno()]
        if self._hear():
            raise TooIdle
        return 0


def poll(wanted: Mapping[int, int], patience: float) -> dict[int, int]:
    """Wait for events on descriptors; descriptor → what happened, empty when the patience ran out."""
    poller = select.poll()
    for descriptor, mask in wanted.items():
        poller.register(descriptor, mask)
    return dict(poller.poll(patience * 1000))
