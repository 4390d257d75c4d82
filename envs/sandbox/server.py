"""The fork server: a small warm interpreter that forks one sealed guest per run, and measures and kills it.

It is started by exec, never by forking the trainer, and never sees a program, an input or an answer: the channel
between judge and guest arrives as a descriptor and is read by the guest after the fork, so no run can find another's
data here.

Two processes: a warden, which goes when the trainer goes, and below it the server proper, which is process 1 of its own
process namespace where there is one. If either dies, everything below dies with it.

Differs from the usual zygote:
1. Processor time is the limit and is polled from the guest's own clock, so fractions of a second count.
2. The wall-clock backstop counts only time in which the guest neither ran nor waited for a processor (its run delay,
   from the kernel's schedstat), and ends a run only while the judge is waiting for the guest. So it catches sleepers,
   and neither honest programs on a busy machine nor those of a busy trainer.
3. While a guest runs, the server says so every second; the trainer can tell a long run from a frozen server.
4. Not `python -I`: that ignores PYTHONHASHSEED, and then a program that lists a set of strings would be right on one
   day and wrong on the next. The environment is empty but for that, and -P -s -S give the rest of -I.
"""

import contextlib
import gc
import importlib
import json
import os
import resource
import select
import signal
import socket
import sys
import time
from dataclasses import dataclass
from typing import Any

from . import guest, isolation, kernel, namespaces
from .tiers import tier_name

HEARTBEAT = 1.0
# A guest that takes so much longer than its backstop, and is neither idle nor out of processor time, or whose judge
# does not come back to it, has met a problem of the machine and deserves no verdict.
HARD_WALL_FACTOR, HARD_WALL_SECONDS = 3.0, 30.0
_SHORTEST_POLL = 0.002
_TRAINER_CHECK = 2.0


def main() -> None:
    """Read the settings from the command line, set up, and serve until the trainer hangs up."""
    settings = json.loads(sys.argv[1])
    control = socket.socket(fileno=settings["control"])
    sys.argv[1:] = []
    os.environ.clear()
    trainer = os.getppid()
    try:
        if "namespaces" in settings["features"]:
            namespaces.enter()
        child = os.fork()
        if child:
            control.detach()
            os.close(settings["control"])
            _watch(child, trainer)
        kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
        server = Server(control, settings)
    except Exception as error:
        control.send(json.dumps({"failed": f"{type(error).__name__}: {error}"}).encode())
        os._exit(1)
    server.serve()
    os._exit(0)


def _watch(child: int, trainer: int) -> None:
    """The warden: leave with the server, and take it along when the trainer is gone."""
    handle = os.pidfd_open(child)
    poller = select.poll()
    poller.register(handle, select.POLLIN)
    while not poller.poll(_TRAINER_CHECK * 1000):
        if os.getppid() != trainer:
            os.kill(child, signal.SIGKILL)
    os._exit(0)


@dataclass
class Usage:
    """What the server saw of a guest; it asks the kernel, never the guest."""

    reason: str = ""  # why the server killed it: cpu, starved or stopped; empty when it ended by itself
    status: int = 0
    cpu: float = 0.0
    wall: float = 0.0
    peak_bytes: int = 0


class Server:
    """One guest at a time: fork, watch, reap, report."""

    def __init__(self, control: socket.socket, settings: dict[str, Any]) -> None:
        features = frozenset(settings["features"])
        self._control = control
        sys.path[:] = settings["path"] or sys.path
        for name in settings["preload"]:
            importlib.import_module(name)
        self._processes = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._base_bytes = _address_space()
        self._fork = namespaces.ProcessNamespace().fork if "namespaces" in features else os.fork
        own, hidden = isolation.readable_paths()
        readable, hidden = (tuple(settings["readable"]) + own, ()) if settings["readable"] else (own, hidden)
        user = isolation.guest_user(features, readable)
        if "namespaces" in features:
            namespaces.build_root(readable, hidden)
        isolation.drop_bounding_set()
        self._plan = isolation.make_plan(features, readable, hidden, user)
        self._contain_orphans = not features & {"seccomp", "namespaces"}
        if self._contain_orphans:
            kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
        gc.collect()
        gc.freeze()
        control.send(json.dumps({"features": sorted(features), "tier": tier_name(features)}).encode())

    def serve(self) -> None:
        """Answer requests until the other end of the control socket closes."""
        while True:
            message, descriptors, _, _ = socket.recv_fds(self._control, 4096, 1)
            if not message:
                return
            if descriptors:
                self._send(self._run(json.loads(message), descriptors[0]))

    def _send(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the trainer is gone; the next receive says so
            self._control.send(json.dumps(message).encode())

    def _run(self, limits: dict[str, Any], channel: int) -> dict[str, Any]:
        started = time.monotonic()
        try:
            child = self._fork()
        except OSError as error:
            os.close(channel)
            return {"failed": f"fork: {error}"}
        if child == 0:
            self._be_guest(limits, channel)
        os.close(channel)
        usage = Usage()
        handle = os.pidfd_open(child)
        try:
            self._supervise(child, handle, limits, started, usage)
            _, usage.status, spent = os.wait4(child, 0)
        finally:
            os.close(handle)
        if self._contain_orphans:
            _kill_orphans()
        usage.wall = time.monotonic() - started
        usage.cpu = spent.ru_utime + spent.ru_stime
        usage.peak_bytes = spent.ru_maxrss * 1024
        return vars(usage)

    def _be_guest(self, limits: dict[str, Any], channel: int) -> None:
        try:
            memory = self._base_bytes + (limits["memory_mb"] << 20)
            bounds = isolation.Bounds(
                limits["cpu_seconds"], memory, limits["output_bytes"], limits["processes"], limits["open_files"]
            )
            isolation.seal(self._plan, bounds, channel)
            guest.serve(isolation.CHANNEL, limits["output_bytes"])
        except OSError as error:  # the trainer reads this number only if the guest never said that it was sealed
            os._exit(error.errno or 1)
        finally:
            os._exit(1)

    def _supervise(self, child: int, handle: int, limits: dict[str, Any], started: float, usage: Usage) -> None:
        """Wait until the guest ends; kill it at a limit, or when the judge has heard enough.

        A guest that has been idle for as long as the backstop is only reported: the judge knows which of the two keeps
        the other waiting.
        """
        clock = (~child << 3) | 2  # the kernel's name for another process's processor-time clock
        poller = select.poll()
        poller.register(handle, select.POLLIN)
        poller.register(self._control, select.POLLIN)
        poll_for = min(limits["cpu_seconds"] / 2, HEARTBEAT)
        notice_at = limits["wall"]
        while True:
            events = dict(poller.poll(max(_SHORTEST_POLL, poll_for) * 1000))
            if handle in events:
                return
            wall = time.monotonic() - started
            cpu = time.clock_gettime(clock)
            usage.reason = "stopped" if events else _excess(cpu, wall, limits)
            if usage.reason:
                signal.pidfd_send_signal(handle, signal.SIGKILL)
                return
            idle = wall >= notice_at and wall - cpu - self._run_delay(handle) >= notice_at
            if idle or wall > HEARTBEAT / 2:
                self._send({"alive": True, "idle": idle})
            notice_at += limits["wall"] if idle else 0.0
            poll_for = min((limits["cpu_seconds"] - cpu) / 2, HEARTBEAT)  # halved: two threads use it up twice as fast
            if wall < notice_at:
                poll_for = min(poll_for, notice_at - wall)

    def _run_delay(self, handle: int) -> float:
        """Seconds the guest's main thread was ready to run and had no processor; 0 where the kernel does not say."""
        try:
            described = self._read(f"self/fdinfo/{handle}")
            pid = next(line.split()[1] for line in described.splitlines() if line.startswith("Pid:"))
            return int(self._read(f"{pid}/schedstat").split()[1]) / 1e9
        except (OSError, StopIteration, ValueError, IndexError):
            return 0.0

    def _read(self, name: str) -> str:
        descriptor = os.open(name, os.O_RDONLY, dir_fd=self._processes)
        with open(descriptor) as file:
            return file.read()


def _excess(cpu: float, wall: float, limits: dict[str, Any]) -> str:
    """Which limit the server kills for is exceeded, if any."""
    if cpu >= limits["cpu_seconds"]:
        return "cpu"
    return "starved" if wall >= max(HARD_WALL_FACTOR * limits["wall"], HARD_WALL_SECONDS) else ""


def _address_space() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def _kill_orphans() -> None:
    """In the tier without isolation: end what a guest left behind, which a subreaper inherits."""
    task = f"/proc/self/task/{os.getpid()}/children"
    for _ in range(100):
        with open(task) as file:
            children = [int(pid) for pid in file.read().split()]
        if not children:
            return
        for pid in children:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
