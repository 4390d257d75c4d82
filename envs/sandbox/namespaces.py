"""Namespaces: a guest server with its own users, processes, mounts, network, ipc, host name and control groups.

The server's root is a small read-only tmpfs holding read-only binds of the interpreter and libraries, and no /proc.
Each guest is process 1 of a process namespace of its own, so killing it kills whatever it started.

Design rule: nothing outside the list of binds exists in there, so a forgotten path is missing and not exposed.

Differs from the source (bubblewrap's order of steps; no code was taken):
1. When the caller is root, two users are mapped: the server stays root so that an interpreter under a private home
   can be bound, and its guests become `nobody`.
2. The root is put together by a warm server, once, and not per program.
"""

import os
import stat
import struct

from . import kernel
from .landlock import DEVICES

GUEST_ID = 65534
_NEW_USER, _NEW_PID, _NEW_NET, _NEW_MOUNTS = 0x10000000, 0x20000000, 0x40000000, 0x00020000
_NEW_IPC, _NEW_UTS, _NEW_CGROUP = 0x08000000, 0x04000000, 0x02000000
_EVERYTHING = _NEW_USER | _NEW_PID | _NEW_NET | _NEW_MOUNTS | _NEW_IPC | _NEW_UTS | _NEW_CGROUP
_NOSUID, _NODEV, _BIND, _RECURSIVE, _PRIVATE, _DETACH = 2, 4, 4096, 16384, 1 << 18, 2
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_READ_ONLY = struct.pack("4Q", 1 | 2, 0, 0, 0)  # mount_setattr: read-only, no setuid


def enter() -> None:
    """Move the calling process into new namespaces; its next child becomes process 1 there.

    Raises:
        OSError: the machine or a container around us forbids it.
    """
    ready, go = os.pipe(), os.pipe()
    helper = os.fork()
    if helper == 0:
        _map_users_of_parent(ready, go)
    os.close(ready[0])
    os.close(go[1])
    try:
        kernel.libc("unshare", _EVERYTHING)
        os.write(ready[1], b"u")
    finally:
        os.close(ready[1])
        message = os.read(go[0], 500)
        os.close(go[0])
        os.waitpid(helper, 0)
    if message != b"mapped":
        raise OSError(1, message.decode() or "user mapping failed")


def _map_users_of_parent(ready: tuple[int, int], go: tuple[int, int]) -> None:
    """In a helper that stays outside, because only someone outside may map more than one user. Never returns."""
    try:
        os.close(ready[1])
        if os.read(ready[0], 1):
            _write_maps(f"/proc/{os.getppid()}")
            os.write(go[1], b"mapped")
    except OSError as error:
        os.write(go[1], f"user mapping: {error}"[:400].encode())
    finally:
        os._exit(0)


def _write_maps(folder: str) -> None:
    user, group = os.geteuid(), os.getegid()
    try:
        _write(f"{folder}/uid_map", f"0 {user} 1\n{GUEST_ID} {GUEST_ID} 1")
        _write(f"{folder}/gid_map", f"0 {group} 1\n{GUEST_ID} {GUEST_ID} 1")
    except OSError:
        _write(f"{folder}/setgroups", "deny")
        _write(f"{folder}/uid_map", f"{GUEST_ID} {user} 1")
        _write(f"{folder}/gid_map", f"{GUEST_ID} {group} 1")


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def build_root(readable: tuple[str, ...], hidden: tuple[str, ...]) -> None:
    """Replace the mount namespace's root by one that holds only the given paths, read-only.

    Raises:
        OSError: a mount was refused; the namespace is then unusable.
    """
    # Opened before the tmpfs goes up, which may cover some of them.
    sources = [(path, os.open(path, os.O_PATH | os.O_CLOEXEC)) for path in (*sorted(readable), *DEVICES)]
    base = next(path for path in ("/tmp", "/mnt", "/") if os.path.isdir(path))
    _mount(None, "/", None, _RECURSIVE | _PRIVATE)
    _mount("tmpfs", base, "tmpfs", _NOSUID | _NODEV, "size=1m,mode=755")
    for path, descriptor in sources:
        _bind(path, descriptor, base)
    for path in hidden:
        if os.path.isdir(base + path):
            _mount("tmpfs", base + path, "tmpfs", _NOSUID | _NODEV, "size=4k,mode=555")
    kernel.syscall("mount_setattr", _AT_FDCWD, base.encode(), _AT_RECURSIVE, _READ_ONLY, len(_READ_ONLY))
    os.chdir(base)
    kernel.syscall("pivot_root", b".", b".")
    kernel.libc("umount2", b".", _DETACH)
    os.chdir("/")
    kernel.libc("sethostname", b"sandbox", 7)


def _mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    source_, kind_, options_ = (None if text is None else text.encode() for text in (source, kind, options))
    kernel.libc("mount", source_, target.encode(), kind_, flags, options_)


def _bind(path: str, descriptor: int, base: str) -> None:
    target = base + path
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if stat.S_ISDIR(os.fstat(descriptor).st_mode):
        os.makedirs(target, exist_ok=True)
    elif not os.path.exists(target):
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
    _mount(f"/proc/self/fd/{descriptor}", target, None, _BIND | _RECURSIVE)
    os.close(descriptor)


class ProcessNamespace:
    """Forks children into process namespaces of their own; made in process 1 of the server's, before /proc is gone."""

    def __init__(self) -> None:
        self._home = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)

    def fork(self) -> int:
        """As os.fork; the child is process 1 of a new namespace.

        Raises:
            OSError: the kernel refused a namespace or a process.
        """
        kernel.libc("unshare", _NEW_PID)
        try:
            child = os.fork()
        except OSError:
            self._return_home()
            raise
        if child:
            self._return_home()
        return child

    def _return_home(self) -> None:
        # Without this the next unshare fails: it starts from the namespace of one's children, which must be one's own.
        kernel.libc("setns", self._home, _NEW_PID)
