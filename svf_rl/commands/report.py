"""`svf-rl report`: one HTML page, and PNGs, on every run, matrix and forgetting that is found in the given folders."""

import json
from pathlib import Path
from typing import Any

from svf_rl.commands.matrix import listed
from svf_rl.errors import ExpertError, UserError
from svf_rl.evaluate.report import ReportConfig, RunRecord, page
from svf_rl.learn.tracking import read_rows
from svf_rl.svf.expert import load_expert


def run(configs: list[ReportConfig], command: list[str]) -> None:
    for config in configs:
        folders = [Path(name) for name in listed(config.runs)]
        runs = [read_run(path.parent) for path in found(folders, "summary.json")]
        matrices, forgotten = ([read(path) for path in found(folders, f"{kind}.json")] for kind in ("matrix", "forgetting"))
        if not (runs or matrices or forgotten):
            raise UserError(f"found no run, matrix or forgetting in {config.runs!r}; give runs=<folder>, or make one: svf-rl train")
        try:
            page(runs, matrices, forgotten, Path(config.out))
        except OSError as error:
            raise UserError(f"cannot write {config.out!r} ({error.strerror}); choose another out") from error
        print(f"{len(runs)} runs, {len(matrices)} matrices, {len(forgotten)} of forgetting: {config.out}")


def found(folders: list[Path], name: str) -> list[Path]:
    """The files of that name in the folders, each once."""
    return list(dict.fromkeys(path.resolve() for folder in folders for path in sorted(folder.rglob(name))))


def read(path: Path) -> dict[str, Any]:
    """A JSON file. UserError for one that is damaged."""
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return content
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {str(path)!r} ({error}); delete it, or make it again") from error


def read_run(folder: Path) -> RunRecord:
    try:
        z = {name: values.tolist() for name, values in load_expert(folder / "expert.safetensors").z.items()}
    except ExpertError:  # another kind of adapter has no z
        z = {}
    metrics, samples = (read_rows(folder / name) for name in ("metrics.jsonl", "samples.jsonl"))
    return RunRecord(str(folder), read(folder / "summary.json"), metrics, samples, z)
