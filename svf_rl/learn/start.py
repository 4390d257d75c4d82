"""Training that begins at a trained adapter instead of at the identity.

The run has the file's settings, but for those that only weigh penalties. Shiftable attention may have more specialists than the
file: nothing but the new ones and their rows of the gate trains, and what the file holds stays as it is, bit for bit, so that
specialists can be added one after another, each from its own corpus. The new ones are nearly shut off in the model that the run
compares with, and keeps if nothing is better; for training their gates are opened (`open_gates`), since a shut one hardly learns.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from svf_rl.adapter import Adapter
from svf_rl.adapters import open_adapter
from svf_rl.attention.adapter import AttentionAdapter
from svf_rl.attention.shiftable import add_specialist
from svf_rl.base.load import Base
from svf_rl.errors import UserError
from svf_rl.learn.language import LanguageRun, validate
from svf_rl.svf.adapter import SVFAdapter

FREE = "specialists top_k entropy balance sparsity penalty openness".split()  # no tensor means another thing with another


def start_at(path: Path, adapter: Adapter, config: Any, base: Base) -> int:
    """Give the adapter, which `config` describes and which is not installed, the values of a file.

    Returns how many specialists are to stay as they are: those of the file where the adapter has more, else 0.
    UserError for a file of another base, another kind or other settings, or with more specialists.
    """
    opened, about = open_adapter(path, base)
    _refuse_others(path, opened.name, about, config)
    if isinstance(opened, SVFAdapter) and isinstance(adapter, SVFAdapter):
        adapter.load_expert(opened.expert())
        return 0
    older = getattr(config, "specialists", 0)
    if isinstance(opened, AttentionAdapter) and older:
        older, opened = _grown(path, opened, older, base)
    adapter.load_state(opened.state())
    return older


@torch.no_grad()
def open_gates(run: LanguageRun) -> None:
    """Once the model has been validated as it begins: let the gates of the specialists that train start level with the base's."""
    run.progress.base_valid = run.progress.best = 1 / validate(run)
    for name, parameter in run.adapter.parameters().items():
        if name.endswith("gate_bias") and parameter.requires_grad:
            parameter.zero_()


def _grown(path: Path, opened: AttentionAdapter, wanted: int, base: Base) -> tuple[int, AttentionAdapter]:
    """How many specialists are to stay as they are, and an adapter with as many as are wanted."""
    found = opened.config.specialists
    if found > wanted:
        raise UserError(
            f"{str(path)!r} has {found} specialists, this run {wanted}, and none are removed; give adapter.specialists={found} to "
            "train them on, more to add some, or a file that svf-rl remove has left without some"
        )
    for _ in range(wanted - found):
        opened = add_specialist(base, opened)
    return (found if wanted > found else 0), opened


def _refuse_others(path: Path, name: str, about: Mapping[str, Any], config: Any) -> None:
    if name != config.name:
        raise UserError(f"{str(path)!r} is of adapter={name}, this run has adapter={config.name}; give adapter={name}")
    named = "settings" in about  # settings that an older version did not have are what they are by default
    stored = asdict(type(config)()) | json.loads(about["settings"]) if named else {key: about[key] for key in ("targets", "rank")}
    own = json.loads(json.dumps(asdict(config)))
    other = [key for key, value in stored.items() if key not in FREE and own[key] != value]
    if other:
        differences = ", ".join(f"adapter.{key}={stored[key]}, this run {own[key]}" for key in other)
        raise UserError(f"{str(path)!r} was trained with {differences}; give the file's settings")
