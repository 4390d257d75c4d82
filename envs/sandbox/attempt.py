"""Run by `probe.py` in a fresh interpreter: use each layer once, in a fork, and print what failed as JSON."""

import json
import os
import sys
from collections.abc import Callable

from . import isolation, kernel, landlock, namespaces, seccomp


def main() -> None:
    """Print layer → reason it does not work, empty when it does."""
    attempts = {"namespaces": _namespaces, "landlock": _landlock, "seccomp": _seccomp}
    json.dump({name: _in_fork(attempt) for name, attempt in attempts.items()}, sys.stdout)


def _in_fork(attempt: Callable[[], None]) -> str:
    """The attempt's complaint, or the empty string."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            attempt()
        except Exception as error:
            os.write(writing, f"{type(error).__name__}: {error}"[:500].encode())
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as file:
        complaint = file.read().decode(errors="replace")
    status = os.waitpid(child, 0)[1]
    return complaint or ("" if status == 0 else f"the attempt died with status {status}")


def _namespaces() -> None:
    namespaces.enter()
    server = os.fork()
    if server:
        os._exit(_wait(server))
    fork = namespaces.ProcessNamespace().fork
    namespaces.build_root(*isolation.readable_paths())
    for _ in range(2):  # the second is the one that fails where the first has not been put right
        guest = fork()
        if guest == 0:
            os._exit(0 if os.getpid() == 1 else 1)
        if _wait(guest):
            raise OSError("no process namespace of one's own for the guest")


def _wait(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _landlock() -> None:
    rules = landlock.ruleset(*isolation.readable_paths())
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    landlock.restrict(rules)
    try:
        os.listdir("/")
    except PermissionError:
        return
    raise OSError("restricted, and yet / can be listed")


def _seccomp() -> None:
    if not seccomp.supported():
        raise OSError(f"system-call numbers are not known for {kernel.MACHINE}")
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    seccomp.install(seccomp.program(sealed=False))
    try:
        os.fork()
    except PermissionError:
        return
    os._exit(3)
