"""Where rows come from: JSON lines, a JSON array, CSV, gzip of these, or a Hugging Face data set. One row in memory at a time.

    source = open_source("train.jsonl.gz")
    for address, row in source.scan(): ...       # every row, with its address
    source.at(address)                           # the same row again

A file is named by its ending (.jsonl .ndjson .json .csv .tsv, and any of them with .gz). A data set is named
"hf:NAME", "hf:NAME:CONFIG" or "hf:NAME:CONFIG:SPLIT"; NAME is an id on the hub, or a folder (with data files, or made by
`save_to_disk`), and then starts with "/", "." or "~", and is never looked up on the hub.

A row that cannot be read stops everything with the file and line it is in: a file that is cut off or is not what its ending says
should not quietly become a shorter one. Rows that can be read but not asked are the business of `rows.py`.

Differs from the usual loader (the `datasets` library, or a list of dictionaries):
1. Random access by byte offset: of a large file nothing but addresses is kept, and a fork or a thread can read at any time.
2. A gzip file, and a JSON array, are unpacked once to a temporary file of JSON lines or CSV; that costs disk, not memory.
3. CSV is read strictly: UTF-8, a header, every record as long as the header.
"""

import atexit
import contextlib
import csv
import gzip
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

Address = tuple[int, int]  # where a row starts, and how long it is: bytes of a file, or a row's number and 1

MAX_ROW = 64 << 20  # bytes of one line or CSV record
MAX_ARRAY = 256 << 20  # bytes of a .json file that is one array: it is read whole
_ENDINGS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")
_BOM = b"\xef\xbb\xbf"


class RowsError(ValueError):
    """The data cannot be used; one line says where, what was expected and what was found."""


class Unusable(ValueError):
    """A row that can be read but not asked; the text is the reason, the same for all rows that lack the same thing."""


@dataclass(frozen=True)
class Row:
    """The values of one row by column, and where it stands, for messages."""

    values: Mapping[str, Any]
    where: str

    def text(self, column: str) -> str:
        """The value of a column as text. Unusable if there is none."""
        value = self.values.get(column)
        if isinstance(value, list | dict):
            raise Unusable(f"column {column!r} holds a {type(value).__name__}, not text")
        if value is None or not str(value).strip():
            raise Unusable(f"nothing in column {column!r}" if column in self.values else f"no column {column!r}")
        return str(value)


class Source(Protocol):
    """Rows with addresses."""

    name: str

    def scan(self) -> Iterator[tuple[Address, Row]]:
        """Every row in order. RowsError at the first that cannot be read."""
        ...

    def at(self, address: Address) -> Row:
        """The row at an address that `scan` gave."""
        ...


def open_source(path: str) -> Source:
    """The rows of a file or data set. RowsError if there is nothing of that name or kind."""
    if path.startswith("hf:"):
        from envs.hub import HubRows

        return HubRows(path)
    file, ending = _existing(path), _ending(path)
    if path.endswith(".gz"):
        file = _unpacked(file)
    if ending in (".csv", ".tsv"):
        return CsvRows(file, path, "\t" if ending == ".tsv" else ",")
    if ending == ".json" and _first_byte(file) == b"[":
        return JsonRows(_array_as_lines(file, path), path, "item")
    return JsonRows(file, path)


class JsonRows:
    """JSON lines: one object a line; blank lines count as nothing. `unit` is what a line is called in messages."""

    def __init__(self, file: Path, name: str, unit: str = "line") -> None:
        self.name, self._file, self._unit, self._made = name, file, unit, _version(file)

    def scan(self) -> Iterator[tuple[Address, Row]]:
        start = 0
        with _reading(self._file, self.name) as file:
            for number, line in enumerate(_lines(file, self.name), 1):
                if line.strip():
                    yield (start, len(line)), self._row(line, f"{self.name}, {self._unit} {number}")
                start += len(line)

    def at(self, address: Address) -> Row:
        return self._row(_read(self._file, self.name, self._made, address), f"{self.name}, byte {address[0]}")

    def _row(self, line: bytes, where: str) -> Row:
        try:
            values = json.loads(line.decode("utf-8-sig").rstrip("\r\n"))
        except UnicodeDecodeError as error:
            raise RowsError(f"{where}: not UTF-8 ({error.reason} in column {error.start + 1})") from None
        except json.JSONDecodeError as error:
            raise RowsError(f"{where}: not JSON ({error.msg} in column {error.colno})") from None
        except (ValueError, RecursionError) as error:
            raise RowsError(f"{where}: not JSON ({error})") from None
        if not isinstance(values, dict):
            raise RowsError(f'{where}: expected an object such as {{"question": ...}}, found a {type(values).__name__}')
        return Row(values, where)


class CsvRows:
    """CSV with a header; a quoted field may hold line ends."""

    def __init__(self, file: Path, name: str, delimiter: str) -> None:
        self.name, self._file, self._delimiter, self._made = name, file, delimiter, _version(file)
        csv.field_size_limit(max(csv.field_size_limit(), MAX_ROW))
        with _reading(file, name) as opened:
            _, _, self._header = next(self._records(opened), (0, 0, []))
        if not self._header or len(set(self._header)) < len(self._header) or not all(self._header):
            raise RowsError(f"{name}, line 1: expected a header of different column names, found {', '.join(self._header)!r}")

    def scan(self) -> Iterator[tuple[Address, Row]]:
        start = 0
        with _reading(self._file, self.name) as file:
            for end, line, fields in self._records(file):
                if start and fields:
                    yield (start, end - start), self._row(fields, f"{self.name}, line {line}")
                start = end

    def at(self, address: Address) -> Row:
        record = _read(self._file, self.name, self._made, address).decode().splitlines(keepends=True)
        return self._row(next(csv.reader(record, delimiter=self._delimiter, strict=True)), f"{self.name}, byte {address[0]}")

    def _records(self, file: BinaryIO) -> Iterator[tuple[int, int, list[str]]]:
        """Each record, with the byte it ends at and the line it starts in."""
        end, number, line = 0, 0, 1

        def lines() -> Iterator[str]:
            nonlocal end, number
            for raw in _lines(file, self.name):
                end, number = end + len(raw), number + 1
                yield raw.decode("utf-8-sig" if number == 1 else "utf-8")

        try:
            for fields in csv.reader(lines(), delimiter=self._delimiter, strict=True):
                yield end, line, fields
                line = number + 1
        except UnicodeDecodeError as error:
            raise RowsError(f"{self.name}, line {number}: not UTF-8 ({error.reason})") from None
        except csv.Error as error:
            raise RowsError(f"{self.name}, line {line}: not CSV ({error})") from None

    def _row(self, fields: list[str], where: str) -> Row:
        if len(fields) != len(self._header):
            raise RowsError(f"{where}: expected {len(self._header)} fields as in the header, found {len(fields)}")
        return Row(dict(zip(self._header, fields, strict=True)), where)


def _existing(path: str) -> Path:
    file = Path(path).expanduser()
    if file.is_dir():
        raise RowsError(f"expected a file, found a folder: {path}; a folder of a Hugging Face data set is written hf:{path}")
    if not file.exists():
        beside = sorted(p.name for p in file.parent.iterdir()) if file.parent.is_dir() else []
        there = [name for name in beside if name.endswith(_ENDINGS) or name.endswith(".gz")]
        raise RowsError(f"no file {path}" + (f"; the folder has {', '.join(there[:5])}" if there else ""))
    return file


def _ending(path: str) -> str:
    ending = Path(path.removesuffix(".gz")).suffix.lower()
    if ending not in _ENDINGS:
        raise RowsError(f"cannot tell what kind of file {path} is; expected one of {' '.join(_ENDINGS)}, or one with .gz")
    return ending


@contextlib.contextmanager
def _reading(file: Path, name: str) -> Iterator[BinaryIO]:
    try:
        with open(file, "rb") as opened:
            yield opened
    except OSError as error:
        raise RowsError(f"cannot read {name}: {error.strerror or error}") from None


def _lines(file: BinaryIO, name: str) -> Iterator[bytes]:
    while line := file.readline(MAX_ROW):
        if len(line) == MAX_ROW:
            raise RowsError(f"{name}: a line is longer than {MAX_ROW >> 20} MiB; is this a file of rows?")
        yield line


def _version(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_size, status.st_mtime_ns


def _read(file: Path, name: str, made: tuple[int, int], address: Address) -> bytes:
    with _reading(file, name) as opened:
        if _version(file) != made:
            raise RowsError(f"{name} has changed since it was first read; start again")
        opened.seek(address[0])
        return opened.read(address[1])


def _first_byte(file: Path) -> bytes:
    with _reading(file, str(file)) as opened:
        return opened.read(64).removeprefix(_BOM).lstrip()[:1]


def _temporary() -> tuple[Path, BinaryIO]:
    """A file for this process and its forks, deleted when this process ends."""
    number, name = tempfile.mkstemp(prefix="svf-rows-")
    atexit.register(_remove, name, os.getpid())
    return Path(name), open(number, "wb")


def _remove(name: str, owner: int) -> None:
    if os.getpid() == owner:
        Path(name).unlink(missing_ok=True)


def _unpacked(file: Path) -> Path:
    plain, target = _temporary()
    try:
        with target, gzip.open(file) as source:
            shutil.copyfileobj(source, target, 1 << 20)
    except (OSError, EOFError, zlib.error) as error:
        raise RowsError(f"cannot unpack {file}: {error}") from None
    return plain


def _array_as_lines(file: Path, name: str) -> Path:
    if file.stat().st_size > MAX_ARRAY:
        raise RowsError(f"{name} is one JSON array of more than {MAX_ARRAY >> 20} MiB; write it as JSON lines (.jsonl)")
    try:
        items = json.loads(file.read_text("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise RowsError(f"{name}: not JSON ({error})") from None
    plain, target = _temporary()
    with target:
        target.writelines(json.dumps(item).encode() + b"\n" for item in items)
    return plain
