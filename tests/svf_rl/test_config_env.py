"""Settings of environments from the command line: every one made from a file, mixtures, other people's, and every mistake."""

import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hydra
import pytest

from envs import isolated
from envs.sandbox import Sandbox, probe
from svf_rl import config as config_module
from svf_rl.config import read_config
from svf_rl.errors import UserError
from svf_rl.rollout.episodes import env_facts, make_env
from svf_rl.settings import flat_settings, to_yaml

CHOICES = [{"text": "iron", "label": "A"}, {"text": "wood", "label": "B"}]
ROWS: dict[str, dict[str, Any]] = {
    "gsm8k": {"question": "Two and two?", "answer": "2+2=<<2+2=4>>4\n#### 4"},
    "humaneval": {
        "prompt": "def add(n):\n",
        "entry_point": "add",
        "canonical_solution": "    return n + 1\n",
        "test": "def check(candidate):\n    assert candidate(1) == 2\n",
    },
    "mbpp": {"text": "Add 1.", "code": "def add(n):\n  return n + 1", "task_id": 11, "test_list": ["assert add(1) == 2"]},
    "arc": {"question": {"stem": "Which is a metal?", "choices": CHOICES}, "answerKey": "A"},
    "labels": {"text": "a note", "label": "cars"},
    "jsonl": {"question": "Capital of Norway?", "answer": "Oslo"},
}


@pytest.fixture(scope="module", autouse=True)
def composed_once() -> Iterator[None]:
    """Hydra takes a tenth of a second to compose; here it composes each choice of files once."""
    remembered = functools.cache(lambda command, choices: hydra.compose(command, list(choices)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config_module, "compose", lambda command, choices: remembered(command, tuple(choices)))
        yield


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One row of each kind in <name>.jsonl of the current folder; labels need a second."""
    monkeypatch.chdir(tmp_path)
    for name, row in ROWS.items():
        more = [{"text": "another", "label": "garden"}] if name == "labels" else []
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, [row, *more])))
    return tmp_path


def made(*words: str) -> Any:
    return make_env(read_config("train", words).env).unwrapped


def mistake(*words: str) -> str:
    with pytest.raises(UserError) as caught:
        made(*words)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("path", ["{name}.jsonl", "{{test: {name}.jsonl}}", "{{train: {name}.jsonl, test: {name}.jsonl}}"])
def test_environments_from_files(name: str, path: str, files: Path) -> None:
    env = made(f"env={name}", f"env.path={path.format(name=name)}")
    split = next(split for split in ("test", "valid", "train") if env.size(split, 5))
    env.reset(options={"split": split, "index": 0})
    assert env.step(env.item.gold)[1] == 1.0


@pytest.mark.parametrize("name", ROWS)
def test_what_is_wrong_with_a_file_is_said_in_one_line(name: str, files: Path) -> None:
    (files / "other.jsonl").write_text('{"x": 1}')
    assert "expected a value for env.path, found none; give env.path=<value>" in mistake(f"env={name}")
    assert f"no file {name}.jsnl; the folder has arc.jsonl" in mistake(f"env={name}", f"env.path={name}.jsnl")
    assert mistake(f"env={name}", "env.path=other.jsonl").startswith("cannot make the environment 'envs:svf/")
    assert "did you mean env.path" in mistake(f"env={name}", f"env.pth={name}.jsonl")
    assert "path must be a file, or name files for some of" in mistake(f"env={name}", f"env.path={{tset: {name}.jsonl}}")
    assert "reward must be one of" in mistake(f"env={name}", f"env.path={name}.jsonl", "env.reward=nearly")


def test_columns_are_named_as_typed(files: Path) -> None:
    (files / "a.jsonl").write_text('{"body": "Q{}", "true": "A"}')
    env = made("env=jsonl", "env.path={test: a.jsonl}", "env.template={body} =", "env.answer=true")
    assert env.reset(options={"split": "test", "index": 0})[0] == "Q{} ="
    assert "no column 'tru'" in mistake("env=jsonl", "env.path={test: a.jsonl}", "env.template={body}", "env.answer=tru")
    assert "env.check: expected true or false, found 'maybe'" in mistake("env=mbpp", "env.path=mbpp.jsonl", "env.check=maybe")
    assert "neither a list nor a mapping" in mistake("env=jsonl", "env.path={test: ")


def test_mixtures_and_the_settings_of_their_parts(files: Path) -> None:
    words = ["env=[math,jsonl]", "env.weights=[2,1]", "env.parts.jsonl.path={test: jsonl.jsonl}"]
    config = read_config("train", words).env
    assert (config.name, config.max_tokens) == ("math+jsonl", 64)
    assert list(config.settings["parts"]) == ["math", "jsonl"]  # as typed: the weights are in this order
    assert made(*words).size("test", 50) == 5  # two of every three rows are math's, and the other part has one
    assert "env.parts.jsonl.path" in mistake("env=[math,jsonl]")
    assert mistake("env=[math,cod]").startswith("unknown env 'cod'; did you mean code")
    assert "expected different environments, found math, math" in mistake("env=[math,math]")
    assert "a weight above 0 for each" in mistake("env=[math,classify]", "env.weights=[1]")
    assert "a weight above 0 for each" in mistake("env=[math,classify]", "env.weights=2")
    assert "unknown setting 'env.parts.math.x'" in mistake("env=[math,classify]", "env.parts.math.x=1")


def test_environments_of_other_people(toys: Path) -> None:
    config = read_config("train", ["env.id=toys:toys/Letter-v0", "env.rows=7", "env.max_tokens=3"]).env
    assert (config.name, config.max_tokens, config.settings) == ("other", 3, {"rows": 7})
    assert make_env(config).unwrapped.size("test", 100) == 7
    assert "unexpected keyword argument 'rosw'" in mistake("env.id=toys:toys/Letter-v0", "env.rosw=7")
    assert "expected a value for env.id" in mistake("env=other")
    assert "found both" in mistake("env.id=toys:toys/Letter-v0", "env.rows.x=7", "env.rows=7")
    assert "found both" in mistake("env.id=toys:toys/Letter-v0", "env.rows=7", "env.rows.x=7")


def test_stored_settings_of_environments_read_back_the_same(files: Path) -> None:
    config = read_config("train", ["env=[math,jsonl]", "env.parts.jsonl.path={test: '${a}.jsonl'}"])
    stored = flat_settings(to_yaml(config))
    assert stored["env.settings.parts.jsonl.path.test"] == "${a}.jsonl"
    assert stored["env.settings.weights"] == [1.0, 1.0]


@pytest.fixture
def weak(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """A machine that lacks these layers of isolation."""
    isolated._sandbox_of.cache_clear()

    def lacking(*layers: str) -> None:
        monkeypatch.setattr(isolated, "Sandbox", lambda **settings: Sandbox(**settings, without=layers))

    yield lacking  # type: ignore[misc]
    isolated._sandbox_of.cache_clear()
    isolated.require("strong")


def test_a_machine_too_weak_is_refused_and_never_silently_used(weak: Callable[..., None], files: Path) -> None:
    if "seccomp" not in probe().features:
        pytest.skip("this machine has no seccomp")
    weak("namespaces", "landlock")
    for words in (["env=code"], ["env=[math,code]"], ["env=mbpp", "env.path=mbpp.jsonl"]):
        assert "require='strong', but this machine offers 'degraded'" in mistake(*words)
    env = made("env=code", "env.isolation=degraded")
    assert env_facts(env) == {"isolation": "seccomp"}
    both = ["env=[code,list_code]", "env.parts.code.isolation=degraded"]
    assert "require='strong'" in mistake(*both)  # the consent of one part is not that of the other
    mixed = made("env=[code,math]", "env.parts.code.isolation=degraded")
    assert env_facts(mixed) == {"isolation": "seccomp"}
    assert "isolation must be one of none, degraded, strong, not 'weak'" in mistake("env=code", "env.isolation=weak")
