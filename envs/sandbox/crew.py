"""A fixed number of guest servers of one kind, lent out one at a time, replaced when they fail.

Design rule: never step down. A replacement that does not come back with every layer of the first ends the sandbox.
"""

import queue
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .records import SandboxUnavailable
from .tiers import tier_name
from .worker import Profile, Worker


class Crew:
    """Servers of one profile.

    Args:
        profile: what each server applies and preloads.
        size: how many, so how many guests at once.
        inspect: tries a server that has just started; raises if it is not fit for use.
    Raises:
        SandboxUnavailable: a server came up with fewer layers than asked for.
        WorkerLost: a server could not be started.
    """

    def __init__(self, profile: Profile, size: int, inspect: Callable[[Worker], None]) -> None:
        self.restarts = 0
        self._profile = profile
        self._size = size
        self._inspect = inspect
        self._slots: queue.LifoQueue[Worker | None] = queue.LifoQueue()
        starting = [Worker(profile) for _ in range(size)]
        try:
            for worker in starting:
                self._admit(worker)
                self._slots.put(worker)
        except BaseException:
            for worker in starting:
                worker.kill()
            raise

    @contextmanager
    def borrow(self) -> Iterator[Worker]:
        """A server for one run; it is replaced if the run leaves it in the middle of something.

        Raises:
            SandboxUnavailable: a replacement came back weaker.
            WorkerLost: a replacement could not be started.
        """
        worker = self._slots.get()
        try:
            if worker is None:
                worker = self._restart()
            yield worker
        finally:
            if worker is not None and worker.busy:
                worker.kill()
                worker = None
            self._slots.put(worker)

    def workers(self) -> list[Worker]:
        """The servers that are idle now, for tests and reports."""
        return [worker for worker in list(self._slots.queue) if worker is not None]

    def close(self) -> None:
        """Wait for the servers in use and end them all."""
        for _ in range(self._size):
            worker = self._slots.get()
            if worker is not None:
                worker.close()

    def _restart(self) -> Worker:
        self.restarts += 1
        worker = Worker(self._profile)
        try:
            self._admit(worker)
        except BaseException:
            worker.kill()
            raise
        return worker

    def _admit(self, worker: Worker) -> None:
        applied = worker.hello()
        if applied != self._profile.features:
            wanted = tier_name(self._profile.features)
            raise SandboxUnavailable(f"a guest server came up as {tier_name(applied)} where {wanted} was in force")
        self._inspect(worker)
