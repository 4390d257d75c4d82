"""The system-call filter: an allow-list in classic BPF, installed by a guest on itself.

Three outcomes. Calls on the list go through. Calls that only an escape needs (ptrace, bpf, mount, io_uring, keyrings,
namespaces, another architecture's entry point) kill the process, which the judge reports as a violation. Everything
else, sockets, files to write, fork and exec among it, fails with EPERM, so that ordinary programs see an ordinary
PermissionError.

Design rule: where a call is harmless or not by its arguments, the arguments are checked here: threads but no processes,
signals to oneself only, limits read but not set, socket pairs but no addresses.
"""

import ctypes
import os
import struct
from collections.abc import Iterable

from . import kernel

_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_EPERM, _ENOSYS = 1, 38
_LOAD, _EQUAL, _GREATER, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x25, 0x35, 0x45, 0x06
_ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32 = 0x40000000

_CLONE_THREAD = 0x00010000
_CLONE_NEW = 0x7E020080  # every CLONE_NEW* flag
_TERMINAL_QUERIES = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)  # TCGETS GWINSZ FIONREAD FIONBIO FIONCLEX FIOCLEX
_DESCRIPTOR_COMMANDS = (0, 1, 2, 3, 4, 1030)  # duplicate, get and set flags; no locks, owners or leases
_UNCATCHABLE = (9, 19)  # a guest that could SIGKILL itself could pass for a victim of the out-of-memory killer
_ANY_GUEST = 0x5EAF00D5  # stands for the guest's process id in the template; no system call or process has this number

Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, constant


def supported() -> bool:
    """Whether the filter's system-call numbers are known for this architecture."""
    return kernel.MACHINE in _ARCHITECTURE


def program(sealed: bool) -> bytes:
    """Assemble the filter, once for all guests.

    Args:
        sealed: also deny opening and looking up files, for machines without any wall around the file system.
    """
    allowed = kernel.ALLOWED if sealed else kernel.ALLOWED | kernel.OPENING
    code: list[Instruction] = [
        (_LOAD, 0, 0, 4),
        (_EQUAL, 1, 0, _ARCHITECTURE[kernel.MACHINE]),
        _return(_KILL),
        (_LOAD, 0, 0, 0),
        (_AT_LEAST, 0, 1, _X32),
        _return(_KILL),
    ]
    for first, last in _runs(allowed.values()):
        code += [(_AT_LEAST, 0, 2, first), (_GREATER, 1, 0, last), _return(_ALLOW)]
    for name, body in _checks(_ANY_GUEST).items():
        if name in kernel.CHECKED:
            code += _when(kernel.CHECKED[name], body)
    for number in kernel.FATAL.values():
        code += _when(number, [_return(_KILL)])
    code.append(_deny())
    return b"".join(struct.pack("HBBI", *instruction) for instruction in code)


def install(template: bytes) -> None:
    """Put the filter on the calling thread for good; no_new_privs must already be set.

    Args:
        template: from `program`; the caller's process id, the only one it may signal, is filled in here.

    Raises:
        OSError: the kernel has no seccomp filters, or refused this one.
    """
    own = template.replace(struct.pack("I", _ANY_GUEST), struct.pack("I", os.getpid()))
    code = ctypes.create_string_buffer(own, len(own))
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(own) // 8, kernel.address(code)))
    kernel.prctl(kernel.PR_SET_SECCOMP, 2, kernel.address(header))


def _runs(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """Consecutive numbers as (first, last), to keep the filter short: every guest pays for its length."""
    runs: list[tuple[int, int]] = []
    for number in sorted(numbers):
        extends = runs and runs[-1][1] == number - 1
        runs[-1:] = [(runs[-1][0], number)] if extends else [*runs[-1:], (number, number)]
    return runs


def _checks(pid: int) -> dict[str, list[Instruction]]:
    signal_to_self = [*_argument_is(0, (pid,)), *_argument_is_not(1, _UNCATCHABLE), _return(_ALLOW)]
    thread_signal = [*_argument_is(0, (pid,)), *_argument_is_not(2, _UNCATCHABLE), _return(_ALLOW)]
    only_threads = [
        _load(0),
        (_ANY_BIT, 0, 1, _CLONE_NEW),
        _deny(),
        (_ANY_BIT, 1, 0, _CLONE_THREAD),
        _deny(),
        _return(_ALLOW),
    ]
    return {
        "clone": only_threads,
        "clone3": [_deny(_ENOSYS)],  # its flags lie behind a pointer; libc falls back to clone
        "kill": signal_to_self,
        "tgkill": thread_signal,
        "prlimit64": [*_argument_is(0, (0, pid)), *_argument_is_null(2), _return(_ALLOW)],
        "ioctl": [*_argument_is(1, _TERMINAL_QUERIES), _return(_ALLOW)],
        "fcntl": [*_argument_is(1, _DESCRIPTOR_COMMANDS), _return(_ALLOW)],
        "socketpair": [*_argument_is(0, (1,)), _return(_ALLOW)],
        "sendto": [*_argument_is_null(4), _return(_ALLOW)],
    }


def _return(action: int) -> Instruction:
    return (_RETURN, 0, 0, action)


def _deny(code: int = _EPERM) -> Instruction:
    return _return(_ERRNO | code)


def _load(argument: int, high: bool = False) -> Instruction:
    return (_LOAD, 0, 0, 16 + 8 * argument + (4 if high else 0))


def _when(number: int, body: list[Instruction]) -> list[Instruction]:
    """The body, which must return, for this call; otherwise fall through."""
    return [(_EQUAL, 0, len(body), number), *body]


def _argument_is(argument: int, values: Iterable[int]) -> list[Instruction]:
    """Deny unless the argument's low half is one of the values."""
    wanted = tuple(values)
    tests = [(_EQUAL, len(wanted) - index, 0, value) for index, value in enumerate(wanted)]
    return [_load(argument), *tests, _deny()]


def _argument_is_not(argument: int, values: Iterable[int]) -> list[Instruction]:
    refused = tuple(values)
    tests = [(_EQUAL, 0, 1, value) for value in refused]
    return [_load(argument), *(step for test in tests for step in (test, _deny()))]


def _argument_is_null(argument: int) -> list[Instruction]:
    halves = (_load(argument), _load(argument, high=True))
    return [step for half in halves for step in (half, (_EQUAL, 1, 0, 0), _deny())]
