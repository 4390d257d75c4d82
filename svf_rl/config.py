"""YAML to frozen dataclasses, once, at the door.

`read_config("train", ["env=math", "seed=1"])` composes configs/train.yaml and its groups with Hydra, checks every key and
value against the dataclasses below, and returns one. Unknown names raise UserError with the nearest known ones.
"""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from svf_rl.base.load import BaseConfig
from svf_rl.base.pretrain import PretrainConfig
from svf_rl.errors import UserError
from svf_rl.learn.trainer import AlgoConfig
from svf_rl.rollout.episodes import EnvConfig
from svf_rl.svf.adapter import AdapterConfig


@dataclass(frozen=True)
class TrainConfig:
    """`svf-rl train`; configs/train.yaml says what each key does."""

    base: BaseConfig = field(default_factory=BaseConfig)
    env: EnvConfig = field(default_factory=EnvConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    algo: AlgoConfig = field(default_factory=AlgoConfig)
    seed: int = 0
    run_dir: str | None = None
    resume: bool = False
    valid_size: int = 200
    test_size: int = 1000


@dataclass(frozen=True)
class EvaluateConfig:
    """`svf-rl evaluate`; configs/evaluate.yaml says what each key does."""

    base: BaseConfig = field(default_factory=BaseConfig)
    env: EnvConfig = field(default_factory=EnvConfig)
    expert: str | None = None
    split: str = "test"
    size: int = 1000
    temperature: float = 0.0
    rows: int = 128
    seed: int = 0


SCHEMAS: dict[str, type] = {"train": TrainConfig, "evaluate": EvaluateConfig, "pretrain": PretrainConfig}


def configs_folder() -> Path:
    """The YAML files: inside the installed package, or beside it in a checkout."""
    inside = Path(__file__).parent / "configs"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "configs"


def groups() -> dict[str, list[str]]:
    """Every config group and the names it has."""
    folders = [f for f in sorted(configs_folder().iterdir()) if f.is_dir()]
    return {f.name: sorted(p.stem for p in f.glob("*.yaml")) for f in folders}


def read_config(command: str, overrides: Sequence[str]) -> Any:
    """The frozen settings of a command. UserError for anything that is not a known key with a fitting value."""
    schema = SCHEMAS[command]
    checked = [_checked(override, command) for override in overrides]
    flat = [part for parts in checked for part in parts]
    try:
        with initialize_config_dir(str(configs_folder().resolve()), version_base="1.3"):
            composed = compose(command, flat)
        settings = {key: value for key, value in composed.items() if key != "experiment"}
        merged = OmegaConf.merge(_writable(OmegaConf.structured(schema)), settings)
        return OmegaConf.to_object(merged)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_one_line(error)) from error


def read_configs(command: str, overrides: Sequence[str]) -> list[Any]:
    """One configuration for each value of seed=a,b,c; one if a single seed, or none, is given."""
    seeds = [o.split("=", 1)[1].split(",") for o in overrides if o.startswith("seed=")]
    rest = [o for o in overrides if not o.startswith("seed=")]
    return [read_config(command, [*rest, *([f"seed={s}"] if s else [])]) for s in (seeds[-1] if seeds else [""])]


def groups_of(command: str) -> dict[str, list[str]]:
    """The config groups that a command has, with their names."""
    used = {entry.name for entry in fields(SCHEMAS[command])} if command in SCHEMAS else set()
    extra = {"experiment"} if command == "train" else set()
    return {name: names for name, names in groups().items() if name in used | extra}


def known_keys(schema: type, prefix: str = "") -> list[str]:
    """Every key that can be set, dotted: base.path, seed, ..."""
    keys: list[str] = []
    for entry in fields(schema):
        inner = entry.default_factory if is_dataclass(entry.default_factory) else None
        keys += known_keys(inner, f"{prefix}{entry.name}.") if inner else [prefix + entry.name]  # type: ignore[arg-type]
    return keys


def _writable(node: Any) -> Any:
    """OmegaConf marks the nodes of frozen dataclasses read-only, each on its own; merging has to write them."""
    OmegaConf.set_readonly(node, False)
    for value in node.values():
        if OmegaConf.is_dict(value):
            _writable(value)
    return node


def _checked(override: str, command: str) -> list[str]:
    schema = SCHEMAS[command]
    key, equals, value = override.partition("=")
    if not equals:
        raise UserError(f"expected key=value, found {override!r}; for example env=math")
    names = groups()
    in_schema = list(groups_of(command))
    if key not in (*known_keys(schema), *in_schema):
        raise UserError(f"unknown setting {key!r}{_nearest(key, [*known_keys(schema), *in_schema])}")
    if key == "base" and value not in names["base"]:
        return ["base=hf", f"base.path={_quoted(value)}"]
    if key in in_schema and value not in names[key]:
        raise UserError(f"unknown {key} {value!r}{_nearest(value, names[key])}")
    return [f"{key}={_quoted(value)}"]


def _quoted(value: str) -> str:
    """Hydra's grammar wants quotes around anything but plain words, numbers and lists."""
    plain = re.fullmatch(r"[\w.+\-/]*|\[.*\]|'.*'|\".*\"", value)
    return value if plain else "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _nearest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, 3, 0.5)
    return f"; did you mean {' or '.join(close)}?" if close else f"; expected one of {', '.join(known)}"


def _one_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    where = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("full_key:")), "")
    return f"{where}: {lines[0]}" if where else lines[0]
