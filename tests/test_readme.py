"""The README's commands and code are those of the program that it describes."""

import ast
import importlib
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
from gymnasium.utils.env_checker import check_env

from svf_rl.cli import COMMANDS
from svf_rl.config import read_configs
from svf_rl.rollout.episodes import make_env

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
SHELL = [line for block in re.findall(r"```sh\n(.*?)```", README, re.S) for line in block.splitlines() if line]


@pytest.mark.parametrize("line", SHELL)
def test_every_command_is_understood(line):
    words = shlex.split(line, comments=True)
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.M)
        return
    if words[:2] == ["python", "train.py"]:
        words = ["svf-rl", "train", *words[2:]]
    assert words[0] == "svf-rl"
    assert words[1] in COMMANDS
    if "--help" not in words:
        assert read_configs(words[1], words[2:])


def test_your_own_environment_takes_ten_lines(tmp_path, monkeypatch):
    """The block is written to a file and used as the text says; gymnasium's own checker accepts it."""
    (block,) = re.findall(r"### Add your own environment.*?```python\n(.*?)```", README, re.S)
    assert len([line for line in block.splitlines() if line]) <= 10
    (tmp_path / "shout.py").write_text(block)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    env = make_env(read_configs("train", ["env.id=shout:Shout-v0"])[0].env)
    check_env(env.unwrapped, skip_render_check=True)
    for completion, reward in ((" TEST7", 1.0), ("test7", 0.0)):
        assert env.reset(options={"split": "test", "index": 7})[0] == "Shout test7:"
        assert env.step(completion)[1] == reward


def test_the_imports_of_the_python_example_exist():
    *_, block = re.findall(r"```python\n(.*?)```", README, re.S)
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            assert all(hasattr(module, alias.name) for alias in node.names)


def test_the_attention_example_runs(capsys):
    (block,) = re.findall(r"## Attention modules.*?```python\n(.*?)```", README, re.S)
    names = {}
    exec(block, names)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == [f"layer {i}" for i in range(names["base"].model.config.num_hidden_layers)]
    assert [names[name].config.specialists for name in ("adapter", "three", "two")] == [2, 3, 2]
    assert names["block"](torch.zeros(5, 1, 64)).shape == (5, 1, 64)


def test_the_tree_names_what_exists():
    tree = re.search(r"## The tree\n\n```\n(.*?)```", README, re.S)[1]
    paths = re.findall(r"^(?:  )?(\S+/|\S+\.(?:py|md))", tree, re.M)
    assert len(paths) > 10
    for path in paths:
        assert any((ROOT / folder / path).exists() for folder in ("", "svf_rl")), path
    names = {path.name for folder in ("svf_rl", "envs", "bench", "tests") for path in (ROOT / folder).glob("**/*.py")}
    assert set(re.findall(r"\b(\w+\.py)\b", tree)) <= names | {"train.py"}


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
