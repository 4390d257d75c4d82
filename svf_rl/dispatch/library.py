"""A library: a folder, or a list, of expert files. A file more or less changes nothing about the others.

An expert's name is the path of its file in the folder, without "/expert.safetensors" or ".safetensors"; of a list, the last part
of that. Other tensor files in the folder (checkpoints, factors) are passed over.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from safetensors import SafetensorError, safe_open

from svf_rl.base.load import Base
from svf_rl.errors import ExpertError
from svf_rl.progress import Progress
from svf_rl.rollout.episodes import EnvConfig
from svf_rl.svf.adapter import SVFAdapter, SVFConfig, make_svf
from svf_rl.svf.expert import FORMAT, check_fits, load_expert
from svf_rl.types import Expert

ROUTER = "which task"  # an expert of the environment WhichTask says what a prompt is, it answers none

Library = Mapping[str, Expert]


def find_experts(where: str) -> dict[str, Path]:
    """Expert files by name, in order of name: "folder", "file", or "[one,another]". ExpertError if there are none."""
    listed = where.startswith("[") and where.endswith("]")
    parts = [part.strip() for part in where[1:-1].split(",") if part.strip()] if listed else [where]
    found: dict[str, Path] = {}
    for part in parts:
        for name, path in _in_one(Path(part).expanduser(), listed).items():
            if name in found and found[name] != path:
                raise ExpertError(f"two experts are named {name!r}: {str(found[name])!r} and {str(path)!r}; rename one")
            found[name] = path
    if not found:
        raise ExpertError(
            f"no experts found in {where!r}; train one: svf-rl train env=math run_dir={parts[0] if parts else 'experts'}/math"
        )
    return dict(sorted(found.items()))


def _in_one(path: Path, listed: bool) -> dict[str, Path]:
    if path.is_file():
        return {_name(path, path.parent.parent if path.stem == "expert" else path.parent): path}
    if not path.is_dir():
        raise ExpertError(f"expected a folder of experts or an expert file, found no {str(path)!r}")
    root = path.parent if listed or (path / "expert.safetensors").exists() else path
    return {_name(file, root): file for file in sorted(path.rglob("*.safetensors")) if _is_expert(file)}


def _name(path: Path, root: Path) -> str:
    inner = path.parent if path.stem == "expert" else path.with_suffix("")
    return inner.relative_to(root).as_posix()


def _is_expert(path: Path) -> bool:
    """Whether the file says so of itself, or cannot be read: then loading it says what is wrong."""
    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("format") == FORMAT
    except (OSError, SafetensorError):
        return True


def open_library(where: str, base: Base, allow_other_base: bool = False) -> tuple[dict[str, Expert], SVFAdapter]:
    """The experts by name, and an adapter, not installed, that takes them all.

    ExpertError if there are none, one is damaged, or one belongs to another base or has other matrices than the rest.
    allow_other_base: take experts of any base whose matrices have the same shapes.
    """
    library = {name: load_expert(path) for name, path in find_experts(where).items()}
    if not allow_other_base:
        for name, expert in library.items():
            _refuse_other_base(name, expert, base)
    first = next(iter(library.values())).about
    adapter = make_svf(base, replace(SVFConfig(), targets=first["targets"], rank=first["rank"]), Progress(quiet=True))
    moved = {name: Expert(e.z, {**e.about, "fingerprint": base.fingerprint}) for name, e in library.items()}
    for name, expert in moved.items():
        _check_shapes(name, expert, base, adapter)
    return moved, adapter


def _refuse_other_base(name: str, expert: Expert, base: Base) -> None:
    try:
        check_fits(expert, base.fingerprint, expert.z)  # the fingerprint alone: factorising the wrong base may take long
    except ExpertError as error:
        raise ExpertError(f"{name}: {error}, or allow_other_base=true for a base of equal shapes") from error


def _check_shapes(name: str, expert: Expert, base: Base, adapter: SVFAdapter) -> None:
    try:
        check_fits(expert, base.fingerprint, adapter.spectra)
    except ExpertError as error:
        raise ExpertError(f"{name}: {error}") from error


def specialists(library: Library) -> dict[str, Expert]:
    """The experts that answer: no router, and of several for one environment the one that gained most (then the first by name)."""
    best: dict[str, str] = {}
    for name in sorted(library, key=lambda name: (-gain(library[name]), name)):
        best.setdefault(str(library[name].about["environment"]), name)
    return {name: e for name, e in library.items() if name in best.values() and label(e) != ROUTER}


def gain(expert: Expert) -> float:
    """How much more of the test questions it answered rightly than the base did, by its own record; 0 if that says nothing."""
    metrics = expert.about["metrics"]
    return float(metrics.get("expert_accuracy", 0.0)) - float(metrics.get("base_accuracy", 0.0))


def label(expert: Expert) -> str:
    """What its environment is called in a question: "envs:svf/HardMath-v0" is "hard math"."""
    name = re.sub(r"^.*[:/]|-v\d+$", "", str(expert.about["environment"]))
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()


def environment(expert: Expert) -> EnvConfig:
    """The environment that it was trained on."""
    about = expert.about
    return EnvConfig(label(expert), str(about["environment"]), settings=json.loads(about.get("environment_settings", "{}")))
