"""What a guest gives up before it sees a line of model-written code.

The layers, any of which a machine may lack:
* namespaces: a private root, process table and network for the guest server (`namespaces.py`);
* landlock: a wall for files that needs no privilege (`landlock.py`);
* seccomp: a filter for system calls (`seccomp.py`);
* rlimits, an empty environment, no capabilities, no descriptors but the channel: always.

Design rule: `seal` either applies all of its plan or raises, and the guest sends its first frame only afterwards, so
a half-sealed guest never receives a program.
"""

import os
import resource
import stat
import struct
import sys
import sysconfig
from dataclasses import dataclass

from . import kernel, landlock, namespaces, seccomp
from .tiers import Strength, strength

CHANNEL = 3  # the guest's only descriptor besides the null ones 0, 1 and 2
STACK_BYTES = 8 << 20
_CAPABILITY_VERSION_3 = 0x20080522
_FIRST_FREE_ID = 1_900_000_000  # far above any account; plus a process id, so that servers never share a task count


@dataclass(frozen=True)
class Bounds:
    """The resource limits of one guest, in the kernel's units."""

    cpu_seconds: float
    address_bytes: int
    file_bytes: int
    processes: int
    open_files: int


@dataclass(frozen=True)
class Plan:
    """How every guest of a server is sealed; made once per server, and inherited by the fork."""

    rules: int | None  # Landlock ruleset descriptor
    filter: bytes | None  # system-call filter
    null: int  # an open /dev/null
    user: int | None  # become this user; None when that is impossible, or would hide the interpreter


def readable_paths() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What Python needs to import its standard library late, and the directories inside it that stay closed.

    Returns:
        Directories and files to leave readable; directories below them to hide (third-party packages).
    """
    library = os.path.dirname(os.__file__)
    wanted = [library, *(path for path in sys.path if path.startswith((sys.base_prefix, library)))]
    wanted += [sysconfig.get_config_var("DESTSHARED") or library, "/usr/share/zoneinfo", "/etc/ld.so.cache"]
    for folder in _library_folders():
        # A library folder above the standard library would bring in everything installed: take its files one by one.
        nested = library.startswith(folder + "/")
        wanted += [entry.path for entry in os.scandir(folder) if ".so" in entry.name] if nested else [folder]
    hidden = tuple(os.path.join(library, name) for name in ("site-packages", "dist-packages"))
    return _outermost(wanted), hidden


def _library_folders() -> list[str]:
    """Where the libraries mapped into this process lie; extension modules not loaded yet will want their neighbours."""
    with open("/proc/self/maps") as maps:
        mapped = {line.split(maxsplit=5)[-1].strip() for line in maps if ".so" in line}
    folders = {os.path.dirname(path) for path in mapped if path.startswith("/")}
    folders |= {folder.removeprefix("/usr") for folder in folders if folder.startswith("/usr/")}
    folders -= {path for path in folders if path.endswith("lib-dynload")}
    return sorted(folder for folder in folders if os.path.isdir(folder))


def _outermost(paths: list[str]) -> tuple[str, ...]:
    existing = sorted({os.path.normpath(path) for path in paths if os.path.exists(path)})
    return tuple(p for p in existing if not any(p != q and p.startswith(q + "/") for q in existing))


def open_to_all(paths: tuple[str, ...]) -> bool:
    """Whether a user without privileges could read these paths, judged by the permission bits on the way to them."""
    for path in paths:
        while path != "/":
            mode = os.stat(path).st_mode
            if not mode & (stat.S_IXOTH if stat.S_ISDIR(mode) else stat.S_IROTH):
                return False
            path = os.path.dirname(path)
    return True


def guest_user(features: frozenset[str], readable: tuple[str, ...]) -> int | None:
    """Whom guests become: nobody in a namespace, an unused user when we are root, otherwise themselves."""
    if "namespaces" in features:
        return namespaces.GUEST_ID
    if os.geteuid() != 0 or not open_to_all(readable):
        return None
    return _FIRST_FREE_ID + os.getpid()


def make_plan(features: frozenset[str], readable: tuple[str, ...], hidden: tuple[str, ...], user: int | None) -> Plan:
    """Build, once, what every guest applies to itself. In a namespace, call it when the new root stands.

    Args:
        features: the layers to apply.
        readable, hidden: as in `landlock.ruleset`.
        user: from `guest_user`.
    Raises:
        OSError: a layer cannot be had.
    """
    rules = landlock.ruleset(readable, hidden) if "landlock" in features else None
    sealed = strength(features) is Strength.DEGRADED
    code = seccomp.program(sealed) if "seccomp" in features else None
    return Plan(rules, code, os.open("/dev/null", os.O_RDWR), user)


def drop_bounding_set() -> None:
    """Take from the server, for its guests to inherit, every capability that an exec could ever give back.

    The server never executes anything, so it keeps what it needs to make guests.
    """
    for capability in range(64):
        try:
            kernel.prctl(kernel.PR_CAPBSET_DROP, capability)
        except OSError:  # no such capability, or no right to drop it: then an exec could not give it back either
            break


def seal(plan: Plan, bounds: Bounds, channel: int) -> None:
    """Apply the whole plan to the calling process, a freshly forked child with one thread. There is no way back.

    Args:
        plan: the server's plan.
        bounds: this guest's limits.
        channel: the descriptor to keep; it becomes number CHANNEL.
    Raises:
        OSError: a layer could not be applied; the caller must exit without running anything.
    """
    os.setsid()
    _limit(bounds, own_count=plan.user is not None)
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    if plan.rules is not None:
        landlock.restrict(plan.rules)
    _become(plan.user)
    kernel.prctl(kernel.PR_SET_PDEATHSIG, 9)  # after the change of user, which clears it
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
    _keep_only(channel, plan.null)
    if plan.filter is not None:
        seccomp.install(plan.filter)


def _limit(bounds: Bounds, own_count: bool) -> None:
    whole_seconds = int(bounds.cpu_seconds) + 2  # only behind the server, which measures in fractions
    limits = {
        resource.RLIMIT_CPU: whole_seconds,
        resource.RLIMIT_AS: bounds.address_bytes,
        resource.RLIMIT_FSIZE: bounds.file_bytes,
        resource.RLIMIT_NOFILE: bounds.open_files,
        resource.RLIMIT_STACK: STACK_BYTES,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
    }
    if own_count:  # otherwise the kernel would count the trainer's own threads against the guest
        limits[resource.RLIMIT_NPROC] = bounds.processes
    for kind, value in limits.items():
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


def _become(user: int | None) -> None:
    if user is not None and os.geteuid() != user:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    header = struct.pack("Ii", _CAPABILITY_VERSION_3, 0)
    kernel.libc("capset", header, bytes(24))


def _keep_only(channel: int, null: int) -> None:
    for number in (0, 1, 2):  # before the channel moves, which may land on the null descriptor
        os.dup2(null, number)
    if channel != CHANNEL:
        os.dup2(channel, CHANNEL)
    os.closerange(CHANNEL + 1, 1 << 20)
