"""YAML to frozen dataclasses, once, at the door.

`read_config("train", ["env=math", "seed=1"])` composes configs/train.yaml and its groups with Hydra, checks every key and
value against the dataclasses below, and returns one. Unknown names raise UserError with the nearest known ones.
"""

import difflib
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
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
from svf_rl.rollout.episodes import EnvConfig, Split
from svf_rl.svf.adapter import SVFConfig


@dataclass(frozen=True)
class TrainConfig:
    """`svf-rl train`; configs/train.yaml says what each key does."""

    base: BaseConfig = field(default_factory=BaseConfig)
    env: EnvConfig = field(default_factory=EnvConfig)
    adapter: SVFConfig = field(default_factory=SVFConfig)
    algo: AlgoConfig = field(default_factory=AlgoConfig)
    seed: int = 0
    run_dir: str | None = None
    resume: bool = False
    valid_size: int = 200
    test_size: int = 1000

    def __post_init__(self) -> None:
        _at_least_one(self, "valid_size", "test_size")


@dataclass(frozen=True)
class EvaluateConfig:
    """`svf-rl evaluate`; configs/evaluate.yaml says what each key does."""

    base: BaseConfig = field(default_factory=BaseConfig)
    env: EnvConfig = field(default_factory=EnvConfig)
    expert: str | None = None
    split: Split = Split.test
    size: int = 1000
    temperature: float = 0.0
    rows: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        _at_least_one(self, "size", "rows")
        if not 0 <= self.temperature < math.inf:
            raise UserError(f"temperature must be at least 0, not {self.temperature}")


@dataclass(frozen=True)
class CardConfig:
    """`svf-rl card`; configs/card.yaml says what each key does."""

    size: int = 500

    def __post_init__(self) -> None:
        _at_least_one(self, "size")


SCHEMAS: dict[str, type] = {
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
    "pretrain": PretrainConfig,
    "card": CardConfig,
}


def _at_least_one(config: Any, *names: str) -> None:
    for name in names:
        if getattr(config, name) < 1:
            raise UserError(f"{name} must be at least 1, not {getattr(config, name)}")


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
    choices, values = _sorted_out(command, overrides)
    try:
        with initialize_config_dir(str(configs_folder().resolve()), version_base="1.3"):
            composed = compose(command, [f"{group}={name}" for group, name in choices.items()])
        missing = sorted(OmegaConf.missing_keys(composed) - set(values))
        if missing:
            raise UserError(f"expected a value for {', '.join(missing)}, found none; give base=<hub id or local folder>")
        settings = {key: value for key, value in composed.items() if key != "experiment"}
        merged = OmegaConf.merge(_writable(OmegaConf.structured(schema)), settings)
        for key, value in values.items():
            OmegaConf.update(merged, key, None if value == "null" else _literal(value))
        return OmegaConf.to_object(merged)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_one_line(error)) from error


def read_configs(command: str, overrides: Sequence[str]) -> list[Any]:
    """One configuration for each value of seed=a,b,c; one if a single seed, or none, is given."""
    seeds = [o.removeprefix("seed=") for o in overrides if o.startswith("seed=")]
    if not seeds:
        return [read_config(command, overrides)]
    rest = [o for o in overrides if not o.startswith("seed=")]
    return [read_config(command, [*rest, f"seed={seed}"]) for seed in dict.fromkeys(seeds[-1].split(","))]


def to_yaml(config: Any) -> str:
    """The settings as YAML that OmegaConf reads back the same."""
    return OmegaConf.to_yaml(OmegaConf.create(_literal(asdict(config))))


def flat_settings(text: str) -> dict[str, Any]:
    """The settings in YAML by dotted key. ValueError if the text holds none."""
    try:
        settings = OmegaConf.to_container(OmegaConf.create(text), resolve=True)
    except Exception as error:  # the YAML reader has several types of its own
        raise ValueError(_one_line(error)) from error
    return {key: value for key, value in _flat(settings, "").items() if key}


def _flat(node: Any, prefix: str) -> dict[str, Any]:
    if not isinstance(node, dict):
        return {prefix: node}
    return {key: value for name in node for key, value in _flat(node[name], f"{prefix}.{name}".lstrip(".")).items()}


def _literal(value: Any) -> Any:
    """The value with "${" in its texts escaped, which OmegaConf would read as a reference."""
    if isinstance(value, dict):
        return {key: _literal(inner) for key, inner in value.items()}
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value


def groups_of(command: str) -> dict[str, list[str]]:
    """The config groups that a command has, with their names."""
    used = {entry.name for entry in fields(SCHEMAS[command])}
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


def _sorted_out(command: str, overrides: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
    """The choices (group: name) and the values (key: text) among key=value words; of several for one key the last counts."""
    choices: dict[str, str] = {}
    values: dict[str, str] = {}
    names, keys = groups_of(command), known_keys(SCHEMAS[command])
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise UserError(f"expected key=value, found {override!r}; for example env=math")
        if key == "base" and "base" in names and _is_path(value, names["base"]):
            choices["base"], values["base.path"] = "hf", value
        elif key in names and value in names[key]:
            choices[key] = value
        elif key in names:
            raise UserError(f"unknown {key} {value!r}{_nearest(value, names[key])}")
        elif key in keys:
            values[key] = value
        else:
            raise UserError(f"unknown setting {key!r}{_nearest(key, [*names, *keys])}")
    return choices, values


def _is_path(value: str, names: Sequence[str]) -> bool:
    """A folder or hub id, not a (perhaps misspelt) name of configs/base."""
    return value not in names and not difflib.get_close_matches(value, names, cutoff=0.8)


def _nearest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, 3, 0.5)
    return f"; did you mean {' or '.join(close)}?" if close else f"; expected one of {', '.join(known)}"


def _one_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    where = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("full_key:")), "")
    return f"{where}: {lines[0]}" if where else lines[0]
