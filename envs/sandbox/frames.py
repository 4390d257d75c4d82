"""Length-prefixed frames on a stream socket, as the guest reads and writes them.

A frame is four bytes of length, big-endian, then that many bytes of JSON: [kind, ...]. The guest's side may block,
because the guest is what gets killed when it does. The judge's side may not, and lives in `worker.py`.
"""

import json
import socket
import struct
from typing import Any

HEADER = struct.Struct(">I")


def pack(message: list[Any]) -> bytes:
    """One frame holding `message`, whose members are JSON values or wires."""
    payload = json.dumps(message, ensure_ascii=True, allow_nan=False, check_circular=False, separators=(",", ":")).encode()
    return HEADER.pack(len(payload)) + payload


class Link:
    """Blocking frames over one end of a socket pair."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def send(self, message: list[Any], limit: int | None = None) -> bool:
        """Send one frame; False, and nothing sent, when its payload is longer than `limit`."""
        frame = pack(message)
        if limit is not None and len(frame) - HEADER.size > limit:
            return False
        self._sock.sendall(frame)
        return True

    def receive(self) -> list[Any] | None:
        """The next frame, or None once the other side has finished."""
        header = self._exactly(HEADER.size)
        if header is None:
            return None
        payload = self._exactly(HEADER.unpack(header)[0])
        return None if payload is None else json.loads(payload)

    def _exactly(self, size: int) -> bytes | None:
        parts = []
        while size:
            part = self._sock.recv(min(size, 1 << 20))
            if not part:
                return None
            parts.append(part)
            size -= len(part)
        return b"".join(parts)
