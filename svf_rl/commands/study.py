"""`svf-rl study name=<study>`: one of the studies of svf_rl/studies, as a table, JSON, CSV, figures and models in a folder."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from svf_rl.commands.folders import out_folder, revision
from svf_rl.files import write_json, write_text
from svf_rl.progress import Progress
from svf_rl.studies.parts import to_csv
from svf_rl.studies.table import STUDIES, StudyConfig


def run(configs: list[StudyConfig], command: list[str]) -> None:
    for config in configs:
        folder, settings = out_folder(config.out or f"runs/study/{config.name}"), getattr(config, config.name)
        found = STUDIES[config.name](settings, folder, Progress())
        about = {"command": shlex.join(command), "revision": revision(), "settings": json.loads(json.dumps(asdict(settings)))}
        write_json(folder / "results.json", about | found)
        write_text(folder / "results.csv", to_csv(found["table"]))
        show(config.name, found["table"])
        print(*found.get("findings", []), sep="\n")
        print(f"the study is in {folder}: results.json, results.csv, figures and models")


def show(name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Numbers with four digits; as wide as the terminal or, where that would cut them, as wide as they are."""
    table = Table(title=name, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for column, first in rows[0].items():
        table.add_column(column.replace("_", " "), justify="left" if isinstance(first, str) else "right", no_wrap=True)
    for row in rows:
        table.add_row(*map(_short, row.values()))
    console = Console()
    console.width = max(console.width, console.measure(table, options=console.options.update(max_width=1000)).maximum)
    console.print(table)


def _short(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
