"""The trainer's handle on one guest server: start it, lend it a channel for a run, hear how the run ended, end it.

Design rule: the server is started by exec with an empty environment, never by forking the trainer, so that neither the
trainer's memory nor its secrets exist anywhere near a guest.
"""

import json
import os
import select
import socket
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from .channel import RUN_PATIENCE, Channel, Ending, WorkerLost, poll
from .records import Limits
from .tiers import PRELOAD

START_PATIENCE = 60.0
_MESSAGE = 4096

# The server imports its siblings from this folder under a package name of its own, so that neither `envs` nor what its
# __init__ imports is loaded there.
_BOOT = (
    "import sys, types, importlib; p = types.ModuleType('_sandbox'); p.__path__ = [sys.argv.pop()]; "
    "sys.modules['_sandbox'] = p; importlib.import_module('_sandbox.' + sys.argv.pop()).main()"
)


def command(module: str, *arguments: str) -> list[str]:
    """The command line that runs `main` of a module of this folder in a fresh, bare interpreter."""
    folder = os.path.dirname(os.path.abspath(__file__))
    return [sys.executable, "-P", "-s", "-S", "-B", "-c", _BOOT, *arguments, module, folder]


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
                command("server", json.dumps(settings)),
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

    def news(self, patience: float = RUN_PATIENCE) -> Ending | bool:
        """Wait for the server to speak: the guest's ending, or a sign of life: has it been idle too long?

        Raises:
            WorkerLost: silence, end of file, or a report of failure.
        """
        message = self._hear(patience)
        if "alive" in message:
            return bool(message["idle"])
        self.busy = False
        return Ending(**message)

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
        if not poll({self.fileno(): select.POLLIN}, patience):
            raise WorkerLost(f"no sign of life for {patience:g} s")
        try:
            text = self._control.recv(_MESSAGE)
        except OSError as error:
            raise WorkerLost(f"server gone: {error}") from None
        message: dict[str, Any] = json.loads(text) if text else {"failed": "server died"}
        if "failed" in message:
            raise WorkerLost(message["failed"])
        return message
