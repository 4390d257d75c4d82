"""Settings: every YAML composes and says what the dataclasses say; values arrive as they were typed; mistakes name the nearest."""

import contextlib
import dataclasses
import functools
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hydra
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from svf_rl import config as config_module
from svf_rl.config import (
    SCHEMAS,
    TrainConfig,
    configs_folder,
    groups,
    groups_of,
    known_keys,
    read_config,
    read_configs,
)
from svf_rl.errors import UserError
from svf_rl.learn.reinforce import Baseline
from svf_rl.learn.trainer import AlgoConfig, KLKind
from svf_rl.rollout.episodes import make_env
from svf_rl.settings import flat_settings, to_yaml
from svf_rl.svf.adapter import Parametrisation


@pytest.fixture(scope="module", autouse=True)
def composed_once() -> Iterator[None]:
    """Hydra takes a tenth of a second to compose; here it composes each choice of files once."""
    remembered = functools.cache(lambda command, choices: hydra.compose(command, list(choices)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config_module, "compose", lambda command, choices: remembered(command, tuple(choices)))
        yield


NEEDS = {
    "generate": ["prompt=x", "experts=y"],
    "harness": ["tasks=z"],
    "remove": ["adapter=x", "specialist=1", "out=y"],
}  # what a command cannot do without
CHOICES = [
    (command, group, name)
    for command in SCHEMAS
    for group, names in groups_of(command).items()
    for name in names
    if (command, group) != ("compose", "dispatch") or name == "fewshot"  # to compose is to search
]


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """A dataclass, nested, with dotted keys."""
    found: dict[str, Any] = {}
    for entry in dataclasses.fields(config):
        value = getattr(config, entry.name)
        found |= flat(value, f"{prefix}{entry.name}.") if dataclasses.is_dataclass(value) else {prefix + entry.name: value}
    return found


def in_yaml(path: Path, prefix: str = "") -> dict[str, Any]:
    """The plain keys of a YAML file, dotted."""
    content = yaml.safe_load(path.read_text()) or {}
    content.pop("defaults", None)
    found: dict[str, Any] = {}

    def walk(node: Any, name: str) -> None:
        if isinstance(node, dict):
            for key, value in node.items():
                walk(value, f"{name}.{key}".lstrip("."))
        else:
            found[name] = node

    walk(content, prefix)
    return found


# ---- the files


def test_there_is_a_file_for_every_command_and_a_command_for_every_file() -> None:
    assert {path.stem for path in configs_folder().glob("*.yaml")} == set(SCHEMAS)


@pytest.mark.parametrize("command", SCHEMAS)
def test_the_files_say_what_the_dataclasses_say(command: str) -> None:
    """Declared twice, in a dataclass for the program and in YAML for the reader, and never apart."""
    given = {key: yaml.safe_load(value) for key, value in (word.split("=") for word in NEEDS.get(command, []))}
    assert read_config(command, NEEDS.get(command, [])) == SCHEMAS[command](**given)


@pytest.mark.parametrize("command", SCHEMAS)
def test_the_main_file_names_every_key_of_its_own(command: str) -> None:
    own = {key for key in known_keys(SCHEMAS[command]) if key.partition(".")[0] not in groups_of(command)}
    assert set(in_yaml(configs_folder() / f"{command}.yaml")) == own


@pytest.mark.parametrize(("group", "name"), [("adapter", "svf"), ("algo", "reinforce"), ("base", "hf"), ("env", "math")])
def test_the_first_file_of_a_group_names_every_key(group: str, name: str) -> None:
    known = {key for key in known_keys(TrainConfig) if key.startswith(f"{group}.")}
    assert set(in_yaml(configs_folder() / group / f"{name}.yaml", group)) == known


@pytest.mark.parametrize(("command", "group", "name"), CHOICES)
def test_every_choice_composes(command: str, group: str, name: str) -> None:
    prefix = "" if group == "experiment" else group
    written = in_yaml(configs_folder() / group / f"{name}.yaml", prefix)
    needs = [f"{key}=some/where" for key, value in written.items() if value == "???"]
    config = read_config(command, [f"{group}={name}", *needs, *NEEDS.get(command, [])])
    assert isinstance(config, SCHEMAS[command])
    values = flat(config)
    values |= {f"env.{key}": value for key, value in values.get("env.settings", {}).items()}
    for key, value in written.items():
        assert values[key] == ("some/where" if value == "???" else value), key


@pytest.mark.parametrize("name", groups()["env"])
def test_every_environment_exists_and_is_named_after_its_file(name: str) -> None:
    """Those that need a file are made in tests/envs/test_contract.py."""
    needs = "???" in (configs_folder() / "env" / f"{name}.yaml").read_text()
    with pytest.raises(UserError, match="expected a value for env") if needs else contextlib.nullcontext():
        env = read_config("train", [f"env={name}"]).env
        assert env.name == name
        assert make_env(env).spec.id == env.id.removeprefix("envs:")


@pytest.mark.parametrize("name", groups()["experiment"])
def test_an_experiment_says_first_the_command_that_runs_it(name: str) -> None:
    first = (configs_folder() / "experiment" / f"{name}.yaml").read_text().splitlines()[:2]
    assert first[0] == "# @package _global_"
    assert re.fullmatch(rf"# python train\.py .*experiment={name}.*", first[1])


def test_the_paper_experiment_is_the_published_recipe() -> None:
    """One greedy answer a question, rewards of plus and minus one, no baseline, no KL, a rescaled sigmoid mask on the MLPs."""
    config = read_config("train", ["env=math", "experiment=paper"])
    algo, adapter = config.algo, config.adapter
    assert (algo.temperature, algo.group, algo.baseline, algo.signed_reward, algo.kl) == (0.0, 1, Baseline.none, True, 0.0)
    assert (algo.learning_rate, algo.clip) == (0.002, 0.001)
    assert (adapter.parametrisation, adapter.targets, adapter.log_bound) == (Parametrisation.paper, "mlp", None)
    assert read_config("train", ["experiment=paper", "algo.kl=0.2"]).algo.kl == 0.2  # what is typed wins


# ---- values


VALUES = [
    ("seed=3", "seed", 3),
    ("seed=-1", "seed", -1),
    ("resume=true", "resume", True),
    ("resume=false", "resume", False),
    ("algo.kl=1e-3", "algo.kl", 1e-3),
    ("algo.kl=0", "algo.kl", 0.0),
    ("algo.kl_kind=exact", "algo.kl_kind", KLKind.exact),
    ("algo.baseline=none", "algo.baseline", Baseline.none),
    ("adapter.parametrisation=paper", "adapter.parametrisation", Parametrisation.paper),
    ("adapter.log_bound=null", "adapter.log_bound", None),
    ("adapter.rank=8", "adapter.rank", 8),
    ("adapter.rank=null", "adapter.rank", None),
    ("run_dir=null", "run_dir", None),
    (r"adapter.targets=\.mlp\.(up|down)_proj", "adapter.targets", r"\.mlp\.(up|down)_proj"),
]


@pytest.mark.parametrize(("word", "key", "value"), VALUES)
def test_values_have_the_type_of_their_key(word: str, key: str, value: Any) -> None:
    found = flat(read_config("train", [word]))[key]
    assert found == value
    assert type(found) is type(value)
    others = flat(read_config("train", [])) | {key: found}
    assert flat(read_config("train", [word])) == others  # and nothing else has changed


ODD = [
    "a b", "a,b", "a=b", "a'b", 'a"b', "'a'", "[a]", "{a: b}", "~/a", "1_0", "007", "1e3", "true", "2024-01-01", "a#b", "a:b",
    "C:\\x\\", "${oc.env:HOME}", "a${b", "\\${a}", "$a", "%s", "*", "?", "-", "ünï/文", " a ", "a\tb",
]  # fmt: skip


@pytest.mark.parametrize("path", ODD)
def test_odd_paths_arrive_as_they_were_typed(path: str) -> None:
    config = read_config("train", [f"run_dir={path}", f"base=./{path}"])
    assert (config.run_dir, config.base.path) == (path, f"./{path}")


@settings(max_examples=20, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(lambda text: text != "null"))
def test_any_text_arrives_as_it_was_typed(text: str) -> None:
    assert read_config("evaluate", [f"expert={text}"]).expert == text


def test_a_base_is_a_name_a_folder_or_a_hub_id() -> None:
    assert read_config("train", ["base=embedded"]).base.path == "embedded"
    for path in ("Qwen/Qwen2.5-0.5B", "gpt2", "/models/llama", "./here", "../there"):
        base = read_config("train", [f"base={path}", "base.dtype=bfloat16"]).base
        assert (base.path, base.dtype, base.trust_remote_code) == (path, "bfloat16", False)
    assert read_config("evaluate", ["base=hf", "base.path=a/b"]).base.path == "a/b"
    assert read_config("train", ["base.path=a/b", "base=hf"]).base.path == "a/b"


def test_the_last_of_several_values_counts() -> None:
    config = read_config("train", ["env=math", "algo.steps=3", "env=code", "algo.steps=4", "base=x/y", "base=embedded"])
    assert (config.env.name, config.algo.steps) == ("code", 4)


def test_several_seeds_are_several_configurations() -> None:
    configs = read_configs("train", ["seed=0,3,1", "algo.steps=7"])
    assert [c.seed for c in configs] == [0, 3, 1]
    assert {c.algo.steps for c in configs} == {7}
    assert [c.seed for c in read_configs("train", ["seed=2,2"])] == [2]  # one run for one seed
    assert [c.seed for c in read_configs("train", [])] == [0]


def test_settings_are_frozen() -> None:
    config = read_config("train", [])
    for node in (config, config.algo, config.env, config.base, config.adapter):
        with pytest.raises(dataclasses.FrozenInstanceError):
            node.name = "x"


@pytest.mark.parametrize("path", [*ODD, None])
def test_stored_settings_read_back_the_same(path: str | None) -> None:
    """What `config.yaml` in a run folder holds is the whole configuration."""
    config = dataclasses.replace(TrainConfig(), run_dir=path)
    stored = flat_settings(to_yaml(config))
    assert stored == flat(config)
    assert OmegaConf.create(to_yaml(config)).run_dir == path  # OmegaConf's own reader agrees


@pytest.mark.parametrize("text", ["", "{", "a: [", "\x00", "x: ${", "just words", "- 1\n- 2", "\ud800"])
def test_text_that_holds_no_settings_is_no_setting(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert flat_settings(text) in ({}, {"just words": None})


# ---- mistakes


MISTAKES = [
    ("env=mth", "unknown env 'mth'; did you mean math"),
    ("env=", "unknown env ''; expected one of"),
    ("base=embeded", "unknown base 'embeded'; did you mean embedded?"),
    ("experiment=papr", "unknown experiment 'papr'; did you mean paper?"),
    ("adapter=svd", "unknown adapter 'svd'; did you mean svf?"),
    ("algo.step=3", "unknown setting 'algo.step'; did you mean algo.steps"),
    ("stepps=3", "unknown setting 'stepps'; did you mean"),
    ("sed=3", "unknown setting 'sed'; did you mean seed"),
    ("--env=math", "unknown setting '--env'; did you mean env"),
    ("+x=3", "unknown setting '+x'"),
    ("~env=math", "unknown setting '~env'; did you mean env"),
    ("hydra.run.dir=x", "unknown setting 'hydra.run.dir'"),
    ("defaults=x", "unknown setting 'defaults'"),
    ("=3", "unknown setting ''"),
    ("math", "expected key=value, found 'math'; for example env=math"),
    ("", "expected key=value, found ''"),
    ("base=hf", "expected a value for base.path, found none; give base=<hub id or local folder>"),
    ("seed=x", "seed: Value 'x' of type 'str' could not be converted to Integer"),
    ("seed=1.5", "seed: Value '1.5'"),
    ("seed=", "seed: Value ''"),
    ("seed=0,", "seed: Value ''"),
    ("seed=null", "seed: "),
    ("resume=maybe", "resume: Value 'maybe' is not a valid bool"),
    ("algo.kl=much", "algo.kl: Value 'much' of type 'str' could not be converted to Float"),
    ("algo.baseline=lo", "algo.baseline: Invalid value 'lo', expected one of [loo, group_std, batch, none]"),
    ("adapter.rank=all", "adapter.rank: Value 'all'"),
    ("algo.steps=0", "algo.steps must be at least 1, not 0"),
    ("algo.group=1", "algo.baseline=loo needs algo.group of at least 2"),
    ("algo.kl=nan", "algo.kl must be at least 0, not nan"),
    ("env.max_tokens=0", "env.max_tokens must be at least 1, not 0"),
    ("valid_size=0", "valid_size must be at least 1, not 0"),
    ("test_size=-3", "test_size must be at least 1, not -3"),
]


@pytest.mark.parametrize(("word", "message"), MISTAKES)
def test_mistakes_are_named_in_one_line(word: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        read_configs("train", ["algo.clip=1", word])
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("command", "word", "message"),
    [
        ("evaluate", "split=tset", "split: Invalid value 'tset', expected one of [pretrain, train, valid, test]"),
        ("evaluate", "size=0", "size must be at least 1, not 0"),
        ("evaluate", "rows=0", "rows must be at least 1"),
        ("evaluate", "temperature=-1", "temperature must be at least 0, not -1.0"),
        ("evaluate", "temperature=inf", "temperature must be at least 0, not inf"),
        ("evaluate", "algo.steps=3", "unknown setting 'algo.steps'"),
        ("evaluate", "experiment=paper", "unknown setting 'experiment'"),
        ("pretrain", "env=math", "unknown setting 'env'"),
        ("card", "size=0", "size must be at least 1, not 0"),
    ],
)
def test_mistakes_of_other_commands_are_named(command: str, word: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        read_configs(command, [word])
    assert str(caught.value).startswith(message)


def test_every_number_of_the_loop_is_checked() -> None:
    """No number of algo can be set to something that is no number, or to minus one."""
    for entry in dataclasses.fields(AlgoConfig):
        for bad in {int: [-1], float: [-1.0, math.nan, math.inf]}.get(entry.type, []):
            with pytest.raises(UserError, match=f"algo.{entry.name} must be"):
                AlgoConfig(**{entry.name: bad})
