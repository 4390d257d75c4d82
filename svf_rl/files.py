"""Writing files so that a crash at any moment leaves the old content or the new, never a half.

Write beside the target, flush to disk, rename over it, flush the folder. Tensors go to safetensors, everything else to JSON:
no pickle anywhere. Every tensor file carries a digest of its content, since safetensors itself does not notice a flipped bit.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor


def cache_root() -> Path:
    """Where things are kept that can be made again: $SVF_RL_CACHE, or svf-rl in the user's cache folder."""
    return Path(os.environ.get("SVF_RL_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "svf-rl")


def write_bytes(path: Path, *pieces: bytes | memoryview, durable: bool = True) -> None:
    """Replace the file's content in one step. OSError as from any write; the old file is then still there.

    durable=False: without waiting for the disk, for what carries a digest and can be made again.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.writelines(pieces)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    if durable:
        _flush_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, str] | None = None, durable: bool = True) -> None:
    """A safetensors file with string metadata, to which the digest is added. The same content gives the same bytes."""
    fields, plain = dict(about or {}), {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    content = save(plain, {**fields, "digest": hash_tensors(plain, fields)})
    end = 8 + int.from_bytes(content[:8], "little")  # a length, a header in JSON, then the values
    header = json.dumps(json.loads(content[8:end]), sort_keys=True).encode()  # safetensors writes metadata in any order
    header += b" " * (-len(header) % 8)
    write_bytes(path, len(header).to_bytes(8, "little"), header, memoryview(content)[end:], durable=durable)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata that `write_tensors` wrote. OSError if the file is missing, foreign, cut short or altered."""
    try:
        with safe_open(path, framework="pt") as file:
            fields = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except OSError:
        raise
    except Exception as error:  # a damaged header can break the reader in many ways
        raise OSError(f"no readable safetensors file ({' '.join(str(error).split())[:200]})") from error
    if (written := fields.pop("digest", None)) is None:
        raise OSError("a safetensors file that svf-rl did not write (it has no digest)")
    if written != hash_tensors(tensors, fields):
        raise OSError("content that differs from what was written; the file is damaged")
    return tensors, fields


def hash_tensors(tensors: Mapping[str, Tensor], fields: Mapping[str, str] | None = None) -> str:
    """A hash over name, dtype, shape and bytes of every tensor, and over `fields`."""
    digest = hashlib.blake2b(json.dumps(fields, sort_keys=True).encode() if fields else b"", digest_size=16)
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
