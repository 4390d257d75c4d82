"""The rows of the matrix: everything that can answer a prompt, behind one function, `route`.

A row cuts a batch of prompts into parts; each part is answered by the base within one context, in which an adapter is installed
or, for the base and wherever a dispatcher abstains, none is. A dispatcher's prompts with the same weights are one part.

base, <file>   the base; an expert or adapter file, by the name of its folder
uniform        the mixture of all experts with equal weights (Transformer-Squared's simplest)
prompt, probe, classifier   the dispatchers of svf_rl/dispatch
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from svf_rl.adapters import open_adapter
from svf_rl.base.load import Base
from svf_rl.dispatch.classifier import ClassifierConfig, make_classifier
from svf_rl.dispatch.dispatcher import Decision, Dispatcher, Fixed, using
from svf_rl.dispatch.library import ROUTER, Library, label, open_library, specialists
from svf_rl.dispatch.probe import ProbeConfig, make_probe
from svf_rl.dispatch.prompt import PromptConfig, make_prompt
from svf_rl.dispatch.system import group
from svf_rl.errors import ExpertError, UserError
from svf_rl.files import hash_tensors, read_tensors
from svf_rl.progress import Progress
from svf_rl.svf.adapter import SVFAdapter
from svf_rl.svf.expert import FORMAT
from svf_rl.types import Expert

DISPATCHERS = ("prompt", "probe", "classifier")


class Part(NamedTuple):
    """Prompts by their index, what answers them, and the context within which it does."""

    indices: list[int]
    label: str
    within: Callable[[], AbstractContextManager[None]]


class Row(NamedTuple):
    """One way of answering. digest: of all that it adds to the base.  environment: what it was trained on, if that is one thing.

    gain: over the base on the validation split there, by its own record.
    """

    name: str
    digest: str
    route: Callable[[Sequence[str]], list[Part]]
    environment: str = ""
    gain: float = -math.inf


def find_files(where: str) -> dict[str, Path]:
    """Files by name: "file", "folder" or "[one,another]"; a folder gives every expert.safetensors in it. ExpertError for none."""
    parts = [part.strip() for part in where.removeprefix("[").removesuffix("]").split(",") if part.strip()]
    found: dict[str, Path] = {}
    for path in map(Path, parts):
        files = [path] if path.is_file() else sorted(path.rglob("expert.safetensors"))
        if not files:
            raise ExpertError(f"expected an expert file, or a folder with expert.safetensors in it, found none at {str(path)!r}")
        root = path if path.is_dir() and not (path / "expert.safetensors").exists() else path.parent
        for file in files:
            name = file.parent.relative_to(root).as_posix() if root in file.parent.parents else _short(file)
            if name in found:
                raise ExpertError(f"two experts are named {name!r}: {str(found[name])!r} and {str(file)!r}; rename a folder")
            found[name] = file
    return found


def _short(path: Path) -> str:
    return path.resolve().parent.name if path.stem == "expert" else path.stem


def base_row() -> Row:
    return Row("base", "", lambda prompts: [Part(list(range(len(prompts))), "base", nullcontext)])


def file_row(name: str, path: Path, base: Base) -> Row:
    """An expert or adapter file. It is opened when it answers; ExpertError at once if it cannot be."""
    _, about = open_adapter(path, base)
    state, fields = read_tensors(path)
    within = partial(_opened, path, base)
    gain = float(about["metrics"].get("valid_gain", -math.inf))  # files of earlier versions have none
    digest, environment = hash_tensors(state, fields), str(about["environment"])
    return Row(name, digest, lambda prompts: [Part(list(range(len(prompts))), name, within)], environment, gain)


@contextmanager
def _opened(path: Path, base: Base) -> Iterator[None]:
    adapter, _ = open_adapter(path, base)
    adapter.install()
    try:
        yield
    finally:
        adapter.uninstall()


def composed_rows(files: Mapping[str, Path], base: Base, dispatchers: Sequence[str], progress: Progress) -> list[Row]:
    """The uniform mixture and the dispatchers over the singular-value experts among the files; none if there are fewer than two.

    UserError for an unknown dispatcher; a classifier is left out where no expert of which_task is among the files.
    """
    paths = [path for path in files.values() if read_tensors(path)[1].get("format") == FORMAT]
    if unknown := sorted(set(dispatchers) - set(DISPATCHERS)):
        raise UserError(f"unknown dispatcher {unknown[0]!r}; expected some of {', '.join(DISPATCHERS)}")
    if len(paths) < 2:
        return []
    everyone, adapter = open_library(f"[{','.join(map(str, paths))}]", base)
    experts = specialists(everyone)
    if len(experts) < 2:
        return []
    routed = any(label(expert) == ROUTER for expert in everyone.values())
    made: dict[str, Callable[[], Dispatcher]] = {
        "prompt": lambda: make_prompt(base, adapter, experts, PromptConfig()),
        "probe": lambda: make_probe(base, adapter, experts, ProbeConfig(), progress),
        "classifier": lambda: make_classifier(base, adapter, experts, ClassifierConfig(), everyone),
    }
    chosen = {name: made[name] for name in dispatchers if name != "classifier" or routed}
    uniform = Fixed(torch.full((len(experts),), 1 / len(experts)), "uniform")
    ways: dict[str, Callable[[], Dispatcher]] = {"uniform": lambda: uniform, **chosen}
    return [_composed(name, make, adapter, experts, everyone) for name, make in ways.items()]


def _composed(name: str, make: Callable[[], Dispatcher], adapter: SVFAdapter, experts: Library, everyone: Library) -> Row:
    known = everyone if name == "classifier" else experts
    tensors = {f"{own} {matrix}": z for own, expert in known.items() for matrix, z in expert.z.items()}
    settings = {"prompt": PromptConfig, "probe": ProbeConfig, "classifier": ClassifierConfig}
    about = {"name": name, "settings": repr(settings[name]()) if name in settings else "", "experts": " ".join(experts)}
    return Row(name, hash_tensors(tensors, about), lambda prompts: _parts(_decision(make, adapter, prompts), adapter, experts))


def _decision(make: Callable[[], Dispatcher], adapter: SVFAdapter, prompts: Sequence[str]) -> Decision:
    with _installed(adapter):
        return make().decide(prompts)


def _parts(decision: Decision, adapter: SVFAdapter, experts: Library) -> list[Part]:
    kinds, mixtures = group(list(experts.values()), decision.weights)
    parts = []
    for number, mixture in enumerate(mixtures):
        indices = [i for i, kind in enumerate(kinds) if kind == number]
        within = nullcontext if mixture is None else partial(_mixed, adapter, mixture)
        parts.append(Part(indices, decision.labels[indices[0]], within))
    return parts


@contextmanager
def _mixed(adapter: SVFAdapter, expert: Expert) -> Iterator[None]:
    with _installed(adapter), using(adapter, expert):
        yield


@contextmanager
def _installed(adapter: SVFAdapter) -> Iterator[None]:
    adapter.install()
    try:
        yield
    finally:
        adapter.uninstall()
