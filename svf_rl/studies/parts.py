"""A study is measured in parts, one for each setting and seed; each is kept when it is done, and never computed again."""

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from svf_rl.errors import UserError
from svf_rl.files import write_json


def part(folder: Path, name: str, settings: Mapping[str, Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What make() gives, from `folder/name.json` if it is there. UserError if that was made with other settings, or is damaged."""
    path, wanted = folder / f"{name}.json", _plain(settings)
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        before: dict[str, Any] = stored["settings"]
        found: dict[str, Any] = stored["found"]
    except FileNotFoundError:
        found = _plain(make())
        write_json(path, {"settings": wanted, "found": found})
        return found
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"cannot read {str(path)!r} ({error}); remove it, or choose another out") from error
    if before != wanted:
        changed = sorted(key for key in {*before, *wanted} if before.get(key) != wanted.get(key))
        raise UserError(f"{str(path)!r} was made with another {', '.join(changed)}; give the same, or choose another out")
    return found


def _plain(record: Mapping[str, Any]) -> dict[str, Any]:
    """As it is read back from JSON."""
    read: dict[str, Any] = json.loads(json.dumps(record))
    return read


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Flat records with the same keys, under a line of their names."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
