"""Landlock: a guest gives up every file but those listed, and TCP, and signals to outsiders where the kernel can.

Design rule: strict, not best effort. A rule that cannot be added is an error, never a weaker wall.
Source: the kernel's userspace-api/landlock documentation; ABI numbers from its header.
"""

import os
import struct

from . import kernel

_CREATE_VERSION = 1
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_ABI_1 = (1 << 13) - 1
_REFER, _TRUNCATE, _IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
_TCP = 3  # bind and connect
_SCOPES = 3  # abstract unix sockets and signals
_PATH_BENEATH = 1
DEVICES = ("/dev/null", "/dev/urandom")


def version() -> int:
    """The kernel's Landlock ABI.

    Raises:
        OSError: there is none, or it is switched off.
    """
    return kernel.syscall("landlock_create_ruleset", None, 0, _CREATE_VERSION)


def ruleset(readable: tuple[str, ...], hidden: tuple[str, ...]) -> int:
    """Build the rules once, for every guest of a server; the descriptor goes to `restrict`.

    Args:
        readable: files, and directories with all below them, that stay readable.
        hidden: directories directly below a readable one whose files do not.
    Raises:
        OSError: the kernel refused a rule.
    """
    rules = _create()
    for path in readable:
        _allow_reading(rules, path, hidden)
    for path in DEVICES:
        _allow(rules, path, _READ_FILE | _WRITE_FILE)
    return rules


def restrict(rules: int) -> None:
    """Bind the calling thread to the rules for good; no_new_privs must already be set.

    Raises:
        OSError: the kernel refused.
    """
    kernel.syscall("landlock_restrict_self", rules, 0)


def _create() -> int:
    abi = version()
    files = _ABI_1 | (_REFER if abi >= 2 else 0) | (_TRUNCATE if abi >= 3 else 0) | (_IOCTL_DEV if abi >= 5 else 0)
    fields = [files, _TCP, _SCOPES][: 3 if abi >= 6 else 2 if abi >= 4 else 1]
    attributes = struct.pack(f"{len(fields)}Q", *fields)
    return kernel.syscall("landlock_create_ruleset", attributes, len(attributes), 0)


def _allow_reading(rules: int, path: str, hidden: tuple[str, ...]) -> None:
    """A rule cannot take away what one above it gave, so a directory with a hidden child is granted child by child."""
    if not any(os.path.dirname(name) == path for name in hidden):
        _allow(rules, path, _READ_FILE | (_READ_DIR if os.path.isdir(path) else 0))
        return
    _allow(rules, path, _READ_DIR)
    for name in os.listdir(path):
        child = os.path.join(path, name)
        if child not in hidden and os.path.exists(child):
            _allow(rules, child, _READ_FILE | (_READ_DIR if os.path.isdir(child) else 0))


def _allow(rules: int, path: str, access: int) -> None:
    parent = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        kernel.syscall("landlock_add_rule", rules, _PATH_BENEATH, struct.pack("=Qi", access, parent), 0)
    finally:
        os.close(parent)
