"""Rows of a Hugging Face data set, through the `datasets` library, which the extra `[datasets]` brings.

Names are explained in `sources.py`. The library keeps a data set on disk and maps it into memory, so a large one costs none.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from envs.sources import Address, Row, RowsError


class HubRows:
    """One split of a data set. Class labels that the data set stores as numbers become their names."""

    def __init__(self, path: str) -> None:
        name, config, split = parts(path)
        found = _load(name, config)
        if hasattr(found, "keys"):
            split = split or (next(iter(found)) if len(found) == 1 else None)
            if split not in found:
                raise RowsError(f"{path}: expected one of the splits {', '.join(found)} at the end, found {split or 'none'}")
            found = found[split]
        elif split:
            raise RowsError(f"{path}: expected no split at the end, because the data set has none; found {split}")
        self.name, self._data = path, found
        self._labels = {column: kind for column, kind in found.features.items() if hasattr(kind, "int2str")}

    def scan(self) -> Iterator[tuple[Address, Row]]:
        for number, values in enumerate(self._data):
            yield (number, 1), self._row(values, number)

    def at(self, address: Address) -> Row:
        return self._row(self._data[address[0]], address[0])

    def _row(self, values: dict[str, Any], number: int) -> Row:
        named = {c: kind.int2str(values[c]) for c, kind in self._labels.items() if isinstance(values[c], int) and values[c] >= 0}
        return Row(values | dict.fromkeys(self._labels) | named, f"{self.name}, row {number}")


def parts(path: str) -> tuple[str, str | None, str | None]:
    """Name, configuration and split of "hf:NAME:CONFIG:SPLIT"; an absent or empty one is None."""
    name, *rest = path.removeprefix("hf:").split(":")
    if not name or len(rest) > 2:
        raise RowsError(f"expected hf:NAME, hf:NAME:CONFIG or hf:NAME:CONFIG:SPLIT, found {path!r}")
    config, split = [part or None for part in (*rest, "", "")[:2]]
    return name, config, split


def splits(path: str) -> list[str]:
    """The names of a data set's own splits; empty when it has only one part without a name."""
    name, config, _ = parts(path)
    found = _load(name, config)
    return list(found) if hasattr(found, "keys") else []


def _load(name: str, config: str | None) -> Any:
    try:
        import datasets
    except ImportError:
        raise RowsError("Hugging Face data sets need the extra: pip install 'svf-rl[datasets]'") from None
    local = name.startswith(("/", ".", "~"))
    folder = Path(name).expanduser()
    if local and not folder.is_dir():
        raise RowsError(f"no folder {name}; an id on the hub starts with neither '/', '.' nor '~'")
    try:
        if local and any((folder / mark).exists() for mark in ("dataset_dict.json", "state.json")):
            return datasets.load_from_disk(str(folder))
        return datasets.load_dataset(str(folder) if local else name, config)
    except Exception as error:  # the library's own errors, the network's, the parsers'
        raise RowsError(f"cannot load the data set {name}: {' '.join(str(error).split())[:300]}") from error
