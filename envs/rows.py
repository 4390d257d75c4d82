"""Tasks whose questions are rows of files: which rows there are, which split each belongs to, and which were left out and why.

    path="all.jsonl"                                  one file, divided by a hash of each question's content
    path={"train": "a.jsonl", "test": "b.csv"}        a file for each split
    path="hf:NAME:CONFIG"                             a data set; its own splits count as declared

Splits never overlap. What decides, in this order:

1. the split a file was declared for; "valid" need not be declared, then the rows of "train" are divided in two;
2. the split the row itself names, where a format has that (MBPP's task numbers);
3. a hash of the question's content (its `key`), in the shares of `text.SPLITS` without pretrain: train 50 %, valid 20 %,
   test 30 % of one file, and train 5 to valid 2 where only these two share one.

A question that occurs again is left out, whichever file it is in; test keeps it before valid, and valid before train. Rows that
cannot be asked (no answer, an empty column) are left out too. `RowTask.skipped` has the reasons with their counts and first places,
and they are logged once.

A pass over every row at the start finds all this; kept of it are 24 bytes a row. A row is read again when it is asked.
"""

import hashlib
import logging
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from envs.sources import Row, RowsError, Source, Unusable, open_source
from envs.text import SPLITS, Item, Score, split_of

SHARES = {split: share for split, share in SPLITS.items() if split != "pretrain"}
PRECEDENCE = ("test", "valid", "train")
AGAIN = "the same question as another row"
_OTHER_NAMES = {"validation": "valid", "dev": "valid", "val": "valid"}
_log = logging.getLogger(__name__)


@dataclass
class Skipped:
    """How many rows were left out for one reason, and the first of them."""

    count: int = 0
    first: str = ""


class Index:
    """Of each usable row five numbers: the hash of its content, its split, its source, where it starts and how long it is."""

    def __init__(self) -> None:
        self._numbers = array("Q")

    def add(self, content: int, split: str, source: int, address: tuple[int, int]) -> None:
        self._numbers.extend((content, PRECEDENCE.index(split), source, *address))

    def __len__(self) -> int:
        return len(self._numbers) // 5

    def chosen(self) -> dict[str, np.ndarray]:
        """For each split its rows as (source, start, length), the first of equal contents only, in order."""
        table = np.array(self._numbers, np.uint64).reshape(-1, 5)
        order = np.argsort(table[:, 1], kind="stable")  # the split that keeps a question comes first
        _, first = np.unique(table[order, 0], return_index=True)
        kept = table[np.sort(order[first])]
        return {split: kept[kept[:, 1] == number, 2:] for number, split in enumerate(PRECEDENCE)}


class RowTask:
    """A task whose questions are rows.

    name: for messages.  path: see above.  item: makes a row's question, or raises Unusable.  score: grades an answer to it.
    split: a row's own split, or None.  guests: see `text.Task`.
    """

    def __init__(
        self,
        name: str,
        path: str | Mapping[str, str],
        item: Callable[[Row], Item],
        score: Callable[[Item, str], Score],
        split: Callable[[Row], str | None] = lambda row: None,
        guests: Sequence[str] = (),
    ) -> None:
        self.name, self._item, self.score, self._split, self.guests = name, item, score, split, tuple(guests)
        self.skipped: dict[str, Skipped] = {}
        self._sources: list[Source] = []
        self._columns = ""
        self._rows = self._index(declared(path))

    def size(self, split: str) -> int:
        """How many questions a split has."""
        if split not in self._rows:
            raise ValueError(f"split must be one of {', '.join(SHARES)}, not {split!r}")
        return len(self._rows[split])

    def row(self, split: str, index: int) -> Item:
        """Question `index` of a split; IndexError past the last one."""
        if not 0 <= index < self.size(split):
            raise IndexError(f"{self.name} has {self.size(split)} questions in {split}, and so no number {index}")
        source, start, length = map(int, self._rows[split][index])
        return self._item(self._sources[source].at((start, length)))

    def _index(self, files: Mapping[str, str]) -> dict[str, np.ndarray]:
        index = Index()
        for split, path in files.items():
            shares = _shares(split, files)
            self._sources.append(open_source(path))
            for address, row in self._sources[-1].scan():
                self._add(index, row, address, shares)
        rows = index.chosen()
        again = len(index) - sum(map(len, rows.values()))
        if again:
            self.skipped[AGAIN] = Skipped(again)
        self._report(files.values(), sum(map(len, rows.values())))
        return rows

    def _add(self, index: Index, row: Row, address: tuple[int, int], shares: Mapping[str, int]) -> None:
        self._columns = self._columns or ", ".join(row.values)
        try:
            digest = hashlib.blake2b(self._item(row).key.encode(), digest_size=8).digest()
        except (Unusable, UnicodeEncodeError) as error:
            reason = str(error) if isinstance(error, Unusable) else "half a character (a lone surrogate)"
            self.skipped.setdefault(reason, Skipped(0, row.where)).count += 1
        else:
            own = self._split(row) if len(shares) > 1 else None
            split = own if own in SHARES else split_of(digest.hex(), shares)
            index.add(int.from_bytes(digest), split, len(self._sources) - 1, address)

    def _report(self, paths: Iterable[str], usable: int) -> None:
        reasons = "; ".join(f"{s.count} x {why}" + (f" (first: {s.first})" if s.first else "") for why, s in self.skipped.items())
        if not usable:
            where = ", ".join(dict.fromkeys(paths))
            raise RowsError(f"no row of {where} can be asked: {reasons or 'there are none'}. Columns: {self._columns or 'none'}")
        if reasons:
            _log.warning("%s: %d rows, without these: %s", self.name, usable, reasons)


def content(text: str) -> str:
    """A text without its layout and case, so that a question in other spacing is the same question."""
    return " ".join(text.split()).casefold()


def fill(template: str, row: Row) -> str:
    """A prompt from a template such as "Question: {question}\\nAnswer:" and the row's columns. Unusable if one is missing."""
    try:
        return template.format_map({column: value for column, value in row.values.items() if value is not None})
    except KeyError as error:
        raise Unusable(f"nothing in column {error} of the template") from None
    except (ValueError, IndexError, AttributeError, TypeError) as error:
        raise RowsError(f"the template {template!r} cannot be filled ({error}); a brace that is meant is written twice") from None


def declared(path: str | Mapping[str, str]) -> dict[str, str]:
    """The file of each split, in order of precedence; "all" stands for the one file that is to be divided."""
    if isinstance(path, str):
        path = _own_splits(path) or {"all": path}
    files = {_OTHER_NAMES.get(split, split): str(file) for split, file in path.items() if file}
    unknown = sorted(set(files) - {*SHARES, "all"})
    if unknown or not files or ("all" in files and len(files) > 1):
        raise RowsError(f"path must be a file, or name files for some of {', '.join(SHARES)}; found {dict(path)}")
    return {split: files[split] for split in (*PRECEDENCE, "all") if split in files}


def _own_splits(path: str) -> dict[str, str]:
    if not path.startswith("hf:"):
        return {}
    from envs.hub import parts, splits

    name, config, split = parts(path)
    own = [] if split else [s for s in splits(path) if _OTHER_NAMES.get(s, s) in SHARES]
    return {s: f"hf:{name}:{config or ''}:{s}" for s in own} if "test" in own or len(own) > 1 else {}


def _shares(split: str, files: Mapping[str, str]) -> dict[str, int]:
    if split == "all":
        return SHARES
    together = ("train", "valid") if split == "train" and "valid" not in files else (split,)
    return {part: SHARES[part] for part in together}
