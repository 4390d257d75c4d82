"""The trainer's handle on one guest server: start it, lend it a channel for a run, hear how the run ended, end it.

Design rule: nothing here blocks without a bound. The judge's end of a channel never waits for the guest alone but for
the guest or news from the server, and the server gives news every second; silence means the machinery is broken.
"""

import json
import os
import select
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .frames import HEADER, pack
from .records import Limits
from .tiers import PRELOAD

START_PATIENCE = 60.0
RUN_PATIENCE = 30.0  # without a sign of life; the server gives one a second
_GOODBYE = 0.25
_CHUNK = 1 << 16
_MESSAGE = 4096

# The server imports its siblings from this folder under a package name of its own, so that neither `envs` nor what its
# __init__ imports is loaded there.
_BOOT = (
    "import sys, types; p = types.ModuleType('_sandbox'); p.__path__ = [sys.argv.pop()]; "
    "sys.modules['_sandbox'] = p; from _sandbox.server import main; main()"
)


class WorkerLost(Exception):
    """The server died, fell silent, or could not do its part; says nothing about the program."""


class FrameTooLong(Exception):
    """The guest announced a frame beyond the limit."""


class EarlyBytes(Exception):
    """The guest sent something while it was the judge's turn."""


@dataclass(frozen=True)
class Profile:
    """What to start: the layers to apply, the modules to preload, and what guests may read.

    Attributes:
        features: layers of isolation, a subset of `tiers.FEATURES`.
        preload: modules the server imports before it forks.
        path: module search path; empty keeps the standard library's.
        readable: directories guests may read besides the standard library's.
    """

    features: frozenset[str]
    preload: tuple[str, ...] = PRELOAD
    path: tuple[str, ...] = ()
    readable: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ending:
    """How the server says a guest ended; see `server.Usage`."""

    reason: str
    status: int
    cpu: float
    wall: float
    peak_bytes: int


class Worker:
    """One guest server. Used by one thread at a time.

    Args:
        profile: what to start. The constructor returns at once; `hello` waits for the server to be ready.
    """

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        self.busy = False  # between the start of a run and the news of its end
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            settings = {
                "control": theirs.fileno(),
                "features": sorted(profile.features),
                "preload": profile.preload,
                "path": profile.path,
                "readable": profile.readable,
            }
            # One thread per server: numeric libraries that start more would leave a fork with locks nobody holds.
            environment = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
            environment |= {"PYTHONHASHSEED": "0", "MALLOC_ARENA_MAX": "1", "LANG": "C.UTF-8"}
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-s", "-S", "-B", "-c", _BOOT, json.dumps(settings), os.path.dirname(__file__)],
                env=environment,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The warden's process id."""
        return self._process.pid

    def hello(self) -> frozenset[str]:
        """Wait until the server is ready, and return the layers it applied.

        Raises:
            WorkerLost: it failed to set up, and why.
        """
        return frozenset(self._hear(START_PATIENCE)["features"])

    def open(self, limits: Limits) -> "Channel":
        """Have a guest forked, and return the judge's end of the channel to it.

        Raises:
            WorkerLost: the server is gone.
        """
        self.busy = True
        ours, theirs = socket.socketpair()
        request = vars(limits) | {"wall": limits.wall}
        try:
            with theirs:
                socket.send_fds(self._control, [json.dumps(request).encode()], [theirs.fileno()])
        except OSError as error:
            ours.close()
            raise WorkerLost(f"server gone: {error}") from None
        return Channel(ours, self)

    def stop(self) -> None:
        """Ask for the current guest's end, if it has not come yet.

        Raises:
            WorkerLost: the server is gone.
        """
        try:
            self._control.send(b"stop")
        except OSError as error:
            raise WorkerLost(f"server gone: {error}") from None

    def news(self, patience: float = RUN_PATIENCE) -> Ending | None:
        """Wait for the server to speak: the guest's ending, or None for a mere sign of life.

        Raises:
            WorkerLost: silence, end of file, or a report of failure.
        """
        message = self._hear(patience)
        return None if "alive" in message else Ending(**message)

    def fileno(self) -> int:
        """For polling."""
        return self._control.fileno()

    def kill(self) -> None:
        """End the server, and with it any guest, now."""
        self._control.close()
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """Let the server leave by itself, or else kill it."""
        self._control.close()
        try:
            self._process.wait(timeout=5.0)
        except subprocess.TimeoutExpired:
            self.kill()

    def _hear(self, patience: float) -> dict[str, Any]:
        if not _poll({self.fileno(): select.POLLIN}, patience):
            raise WorkerLost(f"no sign of life for {patience:g} s")
        try:
            text = self._control.recv(_MESSAGE)
        except OSError as error:
            raise WorkerLost(f"server gone: {error}") from None
        message: dict[str, Any] = json.loads(text) if text else {"failed": "server died"}
        if "failed" in message:
            raise WorkerLost(message["failed"])
        return message


class Channel:
    """The judge's end of one run. Strictly in turns: send a frame, receive a frame.

    Use as a context manager; leaving it closes the socket but does not wait for the guest (see `finish`).
    """

    def __init__(self, sock: socket.socket, worker: Worker) -> None:
        self._sock = sock
        self._sock.setblocking(False)
        self._worker = worker
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
        if self._buffer or (_poll({self._sock.fileno(): select.POLLIN}, 0) and self._more()):
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
            WorkerLost: the machinery failed.
        """
        payload = None
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
        return not self._fill(1)

    def finish(self) -> Ending:
        """Have the guest killed if it still lives, and say how it ended.

        Raises:
            WorkerLost: the machinery failed.
        """
        # A guest that died by itself is reported within this time; killing it first could blur what it died of.
        if self._ending is None and _poll({self._worker.fileno(): select.POLLIN}, _GOODBYE):
            self._ending = self._worker.news()
        if self._ending is None:
            self._worker.stop()
        while self._ending is None:
            self._ending = self._worker.news()
        self._worker.busy = False
        return self._ending

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
            wanted[self._worker.fileno()] = select.POLLIN
        happened = _poll(wanted, RUN_PATIENCE)
        if not happened:
            raise WorkerLost(f"no sign of life for {RUN_PATIENCE:g} s")
        if self._sock.fileno() in happened:
            return happened[self._sock.fileno()]
        self._ending = self._worker.news()
        return 0


def _poll(wanted: Mapping[int, int], patience: float) -> dict[int, int]:
    poller = select.poll()
    for descriptor, mask in wanted.items():
        poller.register(descriptor, mask)
    return dict(poller.poll(patience * 1000))
