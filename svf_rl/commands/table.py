"""`svf-rl table runs=[one,another]`: the tables of the README, from the runs, matrices, compositions and forgetting in folders."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from svf_rl.commands.report import found, read, settings
from svf_rl.config import TableConfig
from svf_rl.errors import UserError
from svf_rl.evaluate import matrix, table
from svf_rl.files import write_json, write_text
from svf_rl.settings import listed


def run(configs: list[TableConfig], command: list[str]) -> None:
    for config in configs:
        folders = [Path(name) for name in listed(config.runs)]
        summaries = {path.parent: read(path) for path in found(folders, "summary.json")}
        lines = table.lines([(settings(folder), own) for folder, own in summaries.items() if "expert_accuracy" in own])
        language = table.text_lines([(settings(folder), own) for folder, own in summaries.items() if table.texts(own)])
        means = {
            "Right answers in %, mean over seeds": matrix.over_seeds(read_all(folders, "matrix")),
            "Mixtures for unseen tasks: right answers in %, mean over seeds": table.compositions(read_all(folders, "composition")),
            "Tasks one after another: mean over seeds, in points": table.forgetting(read_all(folders, "forgetting")),
        }
        parts = [table.to_markdown(lines)] if lines else []
        parts += [table.texts_to_markdown(language)] if language else []
        parts += [f"{title}\n\n{matrix.to_markdown(cells, matrix.full)}" for title, cells in means.items() if cells]
        if not parts:
            raise UserError(f"found no run in {config.runs!r}, nor a matrix or the like of two seeds; give runs=<folder>")
        print("\n\n".join(parts))
        if config.out:
            shown: dict[str, Sequence[Any]] = {"texts": language, **means}
            write(Path(config.out), lines, parts, {title: [asdict(entry) for entry in entries] for title, entries in shown.items()})


def read_all(folders: list[Path], kind: str) -> list[dict[str, Any]]:
    return [read(path) for path in found(folders, f"{kind}.json")]


def write(out: Path, lines: list[table.Line], parts: list[str], means: dict[str, Any]) -> None:
    try:
        write_text(out.with_suffix(".md"), "\n\n".join(parts) + "\n")
        write_json(out.with_suffix(".json"), {"runs": [asdict(line) for line in lines], **means})
        if lines:
            write_text(out.with_suffix(".csv"), table.to_csv(lines))
    except OSError as error:
        raise UserError(f"cannot write {str(out)!r} ({error.strerror}); choose another out") from error
