"""YAML to frozen dataclasses, once, at the door.

`read_config("train", ["env=math", "seed=1"])` composes configs/train.yaml and its groups with Hydra, checks every key and
value against the dataclasses below, and returns one. Unknown names raise UserError with the nearest known ones.

Two groups bring keys of their own: an adapter has those of its settings (svf_rl/adapters.py), an environment those that its YAML
lists beside name, id and max_tokens. `env=[math,code]` is one environment that mixes several, `env.id=<package:Id-v0>` any other.
"""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from svf_rl import settings
from svf_rl.adapters import ADAPTERS
from svf_rl.base.load import BaseConfig
from svf_rl.base.pretrain import PretrainConfig
from svf_rl.dispatch.choices import DISPATCHERS, ComposeConfig, ExpertsConfig, GenerateConfig
from svf_rl.errors import UserError, check_at_least
from svf_rl.evaluate.forgetting import ForgettingConfig
from svf_rl.evaluate.matrix import MatrixConfig
from svf_rl.evaluate.report import ReportConfig
from svf_rl.learn.language import LanguageConfig, general_rows
from svf_rl.learn.trainer import AlgoConfig
from svf_rl.rollout.episodes import EnvConfig, Split
from svf_rl.studies.table import StudyConfig
from svf_rl.svf.adapter import SVFConfig

MIXTURE, OTHER = "envs:svf/Mixture-v0", "other"


class Objective(StrEnum):
    """reinforce: the rewards of an environment.  lm: the next tokens of a corpus."""

    reinforce = "reinforce"
    lm = "lm"


@dataclass(frozen=True)
class TrainConfig:
    """`svf-rl train`; configs/train.yaml says what each key does."""

    base: BaseConfig = field(default_factory=BaseConfig)
    env: EnvConfig = field(default_factory=EnvConfig)
    adapter: Any = field(default_factory=SVFConfig)  # of ADAPTERS
    algo: AlgoConfig = field(default_factory=AlgoConfig)
    objective: Objective = Objective.reinforce
    corpus: str = "special"
    lm: LanguageConfig = field(default_factory=LanguageConfig)
    seed: int = 0
    run_dir: str | None = None
    resume: bool = False
    valid_size: int = 200
    test_size: int = 1000

    @property
    def corpora(self) -> list[str]:
        """The texts that `corpus` names."""
        return settings.listed(self.corpus)

    def __post_init__(self) -> None:
        check_at_least(1, self, "valid_size test_size")
        if self.objective is Objective.lm:
            self._check_corpora()
            self._check_prior()

    def _check_corpora(self) -> None:
        """UserError unless there is one corpus, or one for each specialist, and a row of each in every step."""
        count, specialists = len(self.corpora), getattr(self.adapter, "specialists", 1)
        if count not in (1, specialists):
            more = "for several give adapter=shiftable adapter.specialists=<how many>"
            wanted = f"one corpus, or one for each of adapter.specialists={specialists}" if specialists > 1 else "one corpus"
            raise UserError(f"expected {wanted}, found {count} in corpus={self.corpus}; {more}")
        if self.lm.rows - general_rows(self.lm) < count:
            raise UserError(f"lm.rows={self.lm.rows} less lm.share of general text are fewer than the corpora, {count}; give more")

    def _check_prior(self) -> None:
        """UserError for a geometric prior without a corpus for each specialist, or with too few tokens of each row."""
        branches = (self.adapter.name, getattr(self.adapter, "specialists", 0))
        if self.lm.prior and (branches != ("shiftable", len(self.corpora)) or self.lm.length < 8):
            raise UserError("lm.prior needs adapter=shiftable with a corpus for each specialist, and lm.length of at least 8")


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
        check_at_least(1, self, "size rows")
        check_at_least(0, self, "temperature")


@dataclass(frozen=True)
class CardConfig:
    """`svf-rl card`; configs/card.yaml says what each key does."""

    size: int = 500

    def __post_init__(self) -> None:
        check_at_least(1, self, "size")


@dataclass(frozen=True)
class TableConfig:
    """`svf-rl table`; configs/table.yaml says what each key does."""

    runs: str = "runs"
    out: str | None = None


@dataclass(frozen=True)
class RemoveConfig:
    """`svf-rl remove`; configs/remove.yaml says what each key does."""

    base: BaseConfig = field(default_factory=BaseConfig)
    adapter: str = ""
    specialist: int = 0
    out: str = ""

    def __post_init__(self) -> None:
        if not (self.adapter and self.specialist and self.out):
            raise UserError(
                "expected adapter=<file or run folder> specialist=<number from 1> out=<new file>, "
                f"found adapter={self.adapter} specialist={self.specialist} out={self.out}"
            )


@dataclass(frozen=True)
class HarnessConfig:
    """`svf-rl harness`; configs/harness.yaml says what each key does."""

    base: BaseConfig = field(default_factory=BaseConfig)
    tasks: str = ""
    include: str | None = None
    experts: str = ""
    row: str | None = None
    shots: int | None = None
    limit: int | None = None
    rows: int = 32
    seed: int = 0
    out: str = "runs/harness"

    def __post_init__(self) -> None:
        if not self.tasks:
            raise UserError("expected tasks=<names of the harness's tasks>, found none; for example tasks=[arc_easy,hellaswag]")
        check_at_least(1, self, "rows")


SCHEMAS: dict[str, type] = {
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
    "matrix": MatrixConfig,
    "forgetting": ForgettingConfig,
    "report": ReportConfig,
    "table": TableConfig,
    "harness": HarnessConfig,
    "study": StudyConfig,
    "pretrain": PretrainConfig,
    "card": CardConfig,
    "generate": GenerateConfig,
    "compose": ComposeConfig,
    "experts": ExpertsConfig,
    "remove": RemoveConfig,
}


def configs_folder() -> Path:
    """The YAML files: inside the installed package, or beside it in a checkout."""
    inside = Path(__file__).parent / "configs"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "configs"


def groups() -> dict[str, list[str]]:
    """Every config group and the names it has."""
    folders = [f for f in sorted(configs_folder().iterdir()) if f.is_dir()]
    return {f.name: sorted(p.stem for p in f.glob("*.yaml")) for f in folders}


def groups_of(command: str) -> dict[str, list[str]]:
    """The config groups that a command has, with their names."""
    used = {entry.name for entry in fields(SCHEMAS[command]) if entry.default_factory is not MISSING}  # others are plain values
    extra = {"experiment"} if command == "train" else set()
    return {name: names for name, names in groups().items() if name in used | extra}


def known_keys(schema: type, prefix: str = "") -> list[str]:
    """Every key of a dataclass, dotted: base.path, seed, ..."""
    keys: list[str] = []
    for entry in fields(schema):
        inner = entry.default_factory if is_dataclass(entry.default_factory) else None
        keys += known_keys(inner, f"{prefix}{entry.name}.") if inner else [prefix + entry.name]  # type: ignore[arg-type]
    return [key for key in keys if key != "env.settings"]


def read_config(command: str, words: Sequence[str]) -> Any:
    """The frozen settings of a command. UserError for anything that is not a known key with a fitting value."""
    choices, values = _choices_and_values(command, words)
    try:
        composed = _composed(command, choices)
        free = _free_settings(composed)
        schema = _structure(SCHEMAS[command], composed)
        _check_keys(command, composed, schema, free, values)
        merged = OmegaConf.merge(schema, composed)
        typed = {key: value for key, value in values.items() if key not in free}
        for key, value in typed.items():
            OmegaConf.update(merged, key, None if value == "null" else settings.escaped(value))
        config: Any = OmegaConf.to_object(merged)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(settings.one_line(error)) from error
    return replace(config, env=replace(config.env, settings=_nested(free))) if free else config


def read_configs(command: str, words: Sequence[str]) -> list[Any]:
    """One configuration for each value of seed=a,b,c; one if a single seed, or none, is given."""
    seeds = [o.removeprefix("seed=") for o in words if o.startswith("seed=")]
    if not seeds:
        return [read_config(command, words)]
    rest = [o for o in words if not o.startswith("seed=")]
    return [read_config(command, [*rest, f"seed={seed}"]) for seed in dict.fromkeys(seeds[-1].split(","))]


def _choices_and_values(command: str, words: Sequence[str]) -> tuple[dict[str, list[str]], dict[str, str]]:
    """The choices (group: names) and the values (key: text) that were typed; of several for one key the last counts."""
    choices: dict[str, list[str]] = {}
    values: dict[str, str] = {}
    names = groups_of(command)
    for key, value in settings.split_words(words):
        if key == "base" and key in names and value not in names[key] and not settings.is_misspelt(value, names[key]):
            choices["base"], values["base.path"] = ["hf"], value
        elif key in names:
            chosen = settings.names_in_list(value) if key == "env" else None
            for name in chosen or [value]:
                settings.refuse_unknown(key, name, names[key])
            choices[key] = chosen or [value]
        else:
            values[key] = value
    if "env.id" in values and "env" not in choices:
        choices["env"] = [OTHER]
    return choices, values


def _composed(command: str, choices: Mapping[str, list[str]]) -> dict[str, Any]:
    """The YAML files as plain nested values; of several environments one that mixes them."""
    with initialize_config_dir(str(configs_folder().resolve()), version_base="1.3"):
        single = {group: names[0] for group, names in choices.items()}
        composed = _plain(command, single)
        envs = choices.get("env", [])
        if len(envs) > 1:
            composed["env"] = _mixed([_plain(command, {**single, "env": name})["env"] for name in envs])
    return composed


def _plain(command: str, choices: Mapping[str, str]) -> dict[str, Any]:
    node = OmegaConf.to_container(compose(command, [f"{group}={name}" for group, name in choices.items()]))
    return {str(key): value for key, value in node.items() if key != "experiment"}  # type: ignore[union-attr]


def _mixed(nodes: list[dict[str, Any]]) -> dict[str, Any]:
    """One environment's node from those of several: they become its parts."""
    names = [node["name"] for node in nodes]
    if len(set(names)) < len(names):
        raise UserError(f"expected different environments, found {', '.join(names)}; give each once, and env.weights=[...]")
    parts = {node["name"]: {k: v for k, v in node.items() if k not in ("name", "max_tokens")} for node in nodes}
    longest = max(node["max_tokens"] for node in nodes)
    return {"name": "+".join(names), "id": MIXTURE, "max_tokens": longest, "weights": [1.0] * len(nodes), "parts": parts}


def _free_settings(composed: dict[str, Any]) -> dict[str, Any]:
    """Takes out of the composed settings those of the environment that no schema knows, by dotted key."""
    node = composed.get("env", {})
    known = {entry.name for entry in fields(EnvConfig)}
    return settings.flat({"env": {key: node.pop(key) for key in list(node) if key not in known}}) if node.keys() - known else {}


def _structure(schema: type, composed: Mapping[str, Any]) -> Any:
    """The schema as OmegaConf's, with the settings of the adapter and of the dispatcher that were chosen."""
    node = _writable(OmegaConf.structured(schema))
    if isinstance(composed.get("adapter"), dict):
        node.adapter = _writable(OmegaConf.structured(ADAPTERS[composed["adapter"]["name"]].settings))
    if "dispatch" in composed:
        node.dispatch = _writable(OmegaConf.structured(DISPATCHERS[composed["dispatch"]["name"]]))
    return node


def _writable(node: Any) -> Any:
    """OmegaConf marks the nodes of frozen dataclasses read-only, each on its own; merging has to write them."""
    OmegaConf.set_readonly(node, False)
    for value in node.values():
        if OmegaConf.is_dict(value):
            _writable(value)
    return node


def _check_keys(command: str, composed: Any, schema: Any, free: dict[str, Any], values: Mapping[str, str]) -> None:
    """UserError for a key that does not exist, or has no value and needs one. The free settings that were typed go into `free`."""
    keys = [key for key in settings.flat(OmegaConf.to_container(schema)) if key != "env.settings"]
    any_env = composed.get("env", {}).get("id") == "???"
    for key, value in values.items():
        if key in free or (any_env and key.startswith("env.") and key not in keys):
            free[key] = settings.like(free.get(key, "???"), key, value)
        else:
            settings.refuse_unknown("setting", key, [*groups_of(command), *keys, *free])
    empty = [key for key, value in settings.flat({**composed, "": free}).items() if value == "???" and key not in values]
    if empty:
        hint = "base=<hub id or local folder>" if empty == ["base.path"] else f"{empty[0].lstrip('.')}=<value>"
        raise UserError(f"expected a value for {', '.join(key.lstrip('.') for key in empty)}, found none; give {hint}")


def _nested(free: Mapping[str, Any]) -> dict[str, Any]:
    """{"env.parts.math.id": x} to {"parts": {"math": {"id": x}}}."""
    nested: dict[str, Any] = {}
    for key, value in free.items():
        *path, last = key.removeprefix("env.").split(".")
        node = nested
        for name in path:
            node = node.setdefault(name, {}) if isinstance(node, dict) else node
        if not isinstance(node, dict) or last in node:
            raise UserError(f"expected a value for a setting or for settings below it, found both at {key}; give one")
        node[last] = value
    return nested
