"""`svf-rl report`: one HTML page, and PNGs, on every run, matrix and forgetting that is found in the given folders."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from svf_rl.config import read_config
from svf_rl.errors import ExpertError, UserError
from svf_rl.evaluate.matrix import full, over_seeds, to_markdown
from svf_rl.evaluate.report import Findings, ReportConfig, RunRecord, page
from svf_rl.files import write_text
from svf_rl.learn.tracking import read_rows
from svf_rl.settings import flat_settings, listed, to_yaml
from svf_rl.svf.expert import load_expert

SAME = ("seed", "run_dir", "resume")  # what runs of one name may differ in
TEXT = (*SAME, "objective", "corpus")  # the same of runs on text, whose summaries name the corpus


def run(configs: list[ReportConfig], command: list[str]) -> None:
    for config in configs:
        folders = [Path(name) for name in listed(config.runs)]
        findings = read_all(folders)
        if findings == Findings():
            raise UserError(f"found no run, matrix or forgetting in {config.runs!r}; give runs=<folder>, or make one: svf-rl train")
        try:
            page(findings, Path(config.out))
            if cells := over_seeds(findings.matrices):
                write_text(Path(config.out).with_suffix(".md"), to_markdown(cells, full) + "\n")
        except OSError as error:
            raise UserError(f"cannot write {config.out!r} ({error.strerror}); choose another out") from error
        counts = [f"{len(getattr(findings, kind.name))} {kind.name}" for kind in fields(Findings)]
        print(f"{', '.join(counts)}: {config.out}")


def read_all(folders: list[Path]) -> Findings:
    read_runs = (read_run(path.parent) for path in found(folders, "summary.json"))
    runs = tuple(run for run in read_runs if "expert_accuracy" in run.summary)  # of objective=lm there is no accuracy to show
    kinds = ("matrix", "forgetting", "composition")
    return Findings(runs, *(tuple(read(path) for path in found(folders, f"{kind}.json")) for kind in kinds))


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
    return RunRecord(str(folder), read(folder / "summary.json"), metrics, samples, z, settings(folder))


def settings(folder: Path) -> str:
    """What of a run's settings is not as `svf-rl train` has it by default, as it would be typed."""
    path = folder / "config.yaml"
    if not path.exists():
        return ""
    try:
        stored = flat_settings(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {str(path)!r} ({error}); delete the run, or make it again") from error
    default, same = defaults(stored), TEXT if stored.get("objective") == "lm" else SAME
    changed = [key for key, value in stored.items() if key not in same and default.get(key) != value]
    return " ".join(f"{key.replace('env.settings', 'env')}={'null' if stored[key] is None else stored[key]}" for key in changed)


def defaults(stored: dict[str, Any]) -> dict[str, Any]:
    """The settings of a run with this environment and adapter, if it has a name that `svf-rl train` knows."""
    adapter = f"adapter={stored['adapter.name']}"
    try:
        config = read_config("train", [adapter, f"env={stored['env.name']}"])
    except UserError:  # an environment by its id, or one that needs a file
        config = read_config("train", [adapter])
    return flat_settings(to_yaml(config))
