"""Name to adapter: the table of everything that can adapt a base, and the file format they share.

An adapter is described by its settings (a frozen dataclass whose `name` is its key in ADAPTERS, and whose fields are the keys of
configs/adapter/<name>.yaml) and made by one function. SVF's file is the expert file of svf/expert.py. Every other adapter's is
safetensors too: its trained tensors by name, and these strings as metadata:

format       "svf-adapter-1"            adapter, settings   its name, and its settings as JSON
base         the name the base was loaded by                fingerprint   the hash of its weights
environment  what it was trained on     command, revision, metrics   how, with which code, to what effect
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from enum import EnumType
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

from svf_rl.adapter import Adapter
from svf_rl.alternatives.bias import BiasConfig, make_bias
from svf_rl.alternatives.full import FullConfig, make_full
from svf_rl.alternatives.low_rank import IA3Config, LoRAConfig, TinyLoRAConfig, make_ia3, make_lora, make_tinylora
from svf_rl.attention.gated import GatedConfig, make_gated
from svf_rl.attention.selective import SelectiveConfig, make_selective
from svf_rl.attention.shiftable import ShiftableConfig, make_shiftable
from svf_rl.attention.soft_mask import SoftMaskConfig, make_soft_mask
from svf_rl.base.load import Base
from svf_rl.errors import ExpertError
from svf_rl.files import read_tensors, write_tensors
from svf_rl.progress import Progress
from svf_rl.svf import expert as experts
from svf_rl.svf.adapter import SVFAdapter, SVFConfig, make_svf
from svf_rl.types import Expert

FORMAT = "svf-adapter-1"
REQUIRED = ("adapter", "settings", "base", "fingerprint", "environment", "command", "revision", "metrics")


class Kind(NamedTuple):
    """One kind of adapter: the dataclass of its settings, and what makes one, not yet installed."""

    settings: type
    make: Callable[[Base, Any, Progress], Adapter]


ADAPTERS: dict[str, Kind] = {
    "svf": Kind(SVFConfig, make_svf),
    "shiftable": Kind(ShiftableConfig, make_shiftable),
    "gated": Kind(GatedConfig, make_gated),
    "soft_mask": Kind(SoftMaskConfig, make_soft_mask),
    "selective": Kind(SelectiveConfig, make_selective),
    "lora": Kind(LoRAConfig, make_lora),
    "ia3": Kind(IA3Config, make_ia3),
    "tinylora": Kind(TinyLoRAConfig, make_tinylora),
    "bias": Kind(BiasConfig, make_bias),
    "full": Kind(FullConfig, make_full),
}


def make_adapter(base: Base, config: Any, progress: Progress | None = None) -> Adapter:
    """The adapter that the settings describe, not yet installed. BaseError where this base cannot have it."""
    return ADAPTERS[config.name].make(base, config, progress or Progress(quiet=True))


def save_adapter(path: Path, adapter: Adapter, config: Any, about: Mapping[str, Any]) -> None:
    """Write the adapter's file atomically: an expert file for SVF. about: its history, the fields above."""
    if isinstance(adapter, SVFAdapter):
        how = {"targets": config.targets, "rank": config.rank, "parametrisation": str(config.parametrisation)}
        experts.save_expert(path, Expert(adapter.expert().z, {**about, **how}))
        return
    fields = {**about, "format": FORMAT, "adapter": adapter.name, "settings": asdict(config)}
    missing = [field for field in REQUIRED if field not in fields]
    if missing:
        raise ValueError(f"an adapter file needs {', '.join(missing)}")
    write_tensors(path, adapter.state(), {k: v if isinstance(v, str) else json.dumps(v) for k, v in fields.items()})


def adapter_file(where: str) -> Path:
    """The adapter file that this names: the file itself, or that of a run folder."""
    path = Path(where).expanduser()
    return path / "expert.safetensors" if path.is_dir() else path


def open_adapter(path: Path, base: Base, progress: Progress | None = None) -> tuple[Adapter, dict[str, Any]]:
    """The adapter in a file, made for `base` and not yet installed, and its metadata.

    ExpertError for a missing, damaged or foreign file, or one of another base.
    """
    state, about = _read(path)
    if about.get("format") == experts.FORMAT:
        return _open_expert(path, base, progress)
    if about["fingerprint"] != base.fingerprint:
        raise ExpertError(
            f"{str(path)!r} was trained on the base {about['base']!r} (fingerprint {about['fingerprint']}), "
            f"the loaded base has fingerprint {base.fingerprint}; load that base"
        )
    config, metrics = _settings_and_metrics(path, about)
    adapter = make_adapter(base, config, progress)
    if any(not bool(tensor.isfinite().all()) for tensor in state.values() if tensor.is_floating_point()):
        raise ExpertError(f"{str(path)!r} has values that are not finite; the file is damaged, train it again")
    try:
        adapter.load_state({name: tensor.to(base.device) for name, tensor in state.items()})
    except ValueError as error:
        raise ExpertError(f"{str(path)!r} does not fit this base: {error}") from error
    return adapter, {**about, "metrics": metrics}


def _read(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    try:
        state, about = read_tensors(path)
    except OSError as error:
        found = error.strerror or error
        raise ExpertError(f"cannot read the expert {str(path)!r}: expected an expert or adapter file, found {found}") from error
    known = about.get("format") in (FORMAT, experts.FORMAT)
    if not known or (about["format"] == FORMAT and any(field not in about for field in REQUIRED)):
        raise ExpertError(f"{str(path)!r} is neither an expert nor an adapter of svf-rl, or was cut short")
    return state, about


def _open_expert(path: Path, base: Base, progress: Progress | None) -> tuple[Adapter, dict[str, Any]]:
    expert = experts.load_expert(path)
    experts.check_fits(expert, base.fingerprint, expert.z)  # the fingerprint alone: factorising the wrong base may take long
    config = replace(SVFConfig(), targets=expert.about["targets"], rank=expert.about["rank"])
    adapter = make_svf(base, config, progress or Progress(quiet=True))
    experts.check_fits(expert, base.fingerprint, adapter.spectra)
    adapter.load_expert(expert)
    return adapter, dict(expert.about)


def _settings_and_metrics(path: Path, about: Mapping[str, str]) -> tuple[Any, Any]:
    try:
        schema = ADAPTERS[about["adapter"]].settings
        kinds = {key: kind if isinstance(kind, EnumType) else lambda value: value for key, kind in get_type_hints(schema).items()}
        stored = {key: kinds[key](value) for key, value in json.loads(about["settings"]).items()}
        return schema(**stored), json.loads(about["metrics"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ExpertError(
            f"{str(path)!r} has the adapter {about['adapter']!r} with settings or metrics this version cannot read: {error}"
        ) from error
