"""`svf-rl compose`: the file it leaves is the mixture that its recipe says, and its figures are those of that file."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from svf_rl.adapters import open_adapter
from svf_rl.base.load import Base
from svf_rl.dispatch.library import find_experts
from svf_rl.svf.expert import load_expert, mix

FEW = "dispatch.shots=3 dispatch.valid_size=6 dispatch.population=6 dispatch.rounds=2 test_size=10".split()


@pytest.fixture
def words(architecture_folders: dict[str, Path], save_expert_of: Callable[..., Path]) -> list[str]:
    """A mixture of two experts for the toy task."""
    folder = save_expert_of("one", 0, "toys:one").parent.parent
    save_expert_of("two", 1, "toys:two")
    env = ["env=math", "env.id=toys:toys/Letter-v0", "env.name=letter", "env.max_tokens=3"]
    return ["compose", f"base={architecture_folders['llama']}", *env, f"experts={folder}", *FEW]


def test_the_file_is_the_mixture_of_its_recipe(svf_rl: Callable[..., Any], words: list[str], tiny_base: Base, toy_env: Any) -> None:
    done = svf_rl(*words, "run_dir=mine")
    assert done.code == 0
    expert = load_expert(Path("mine/expert.safetensors"))
    recipe = json.loads(expert.about["recipe"])
    library = {name: load_expert(path) for name, path in find_experts(words[-len(FEW) - 1].removeprefix("experts=")).items()}
    assert recipe["experts"] == list(library)
    expected = mix(list(library.values()), recipe["weights"])
    assert all(torch.equal(z, expected.z[name]) for name, z in expert.z.items())
    written = json.loads(Path("mine/composition.json").read_text())
    assert {key: written[key] for key in recipe} == recipe
    assert (written["env"], written["seed"]) == ("letter", 0)
    assert recipe["valid"][recipe["chosen"]] == max(recipe["valid"].values())
    assert expert.about["metrics"]["valid_gain"] == recipe["valid"][recipe["chosen"]] - recipe["valid"]["base"]
    adapter, _ = open_adapter(Path("mine/expert.safetensors"), tiny_base)
    before = right(tiny_base, toy_env("Letter"))
    adapter.install()
    after = right(tiny_base, toy_env("Letter"))
    adapter.uninstall()
    assert (written["test"]["base"], written["test"][recipe["chosen"]]) == (before, after)
    assert f"{recipe['chosen']}, found in" in done.out


def right(base: Base, env: Any) -> float:
    """The share of ten test questions that transformers' own greedy generation answers rightly."""
    total = 0.0
    for index in range(10):
        prompt, _ = env.reset(options={"split": "test", "index": index})
        ids = torch.tensor([base.codec.prompt(prompt)])
        written = base.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, do_sample=False, pad_token_id=0)
        total += float(env.step(base.codec.decode(written[0, ids.shape[1] :].tolist()))[1])
    return total / 10


def test_mistakes(svf_rl: Callable[..., Any], words: list[str]) -> None:
    Path("mine").mkdir()
    Path("mine/expert.safetensors").touch()
    assert svf_rl(*words, "run_dir=mine").mistake == "'mine' already holds an expert; choose another run_dir"
    assert svf_rl("compose", "dispatch=probe").mistake.startswith("compose searches a mixture: expected dispatch=fewshot")
    assert svf_rl(*words, "experts=nowhere").mistake.startswith("expected a folder of experts or an expert file")
    assert svf_rl(*words, "test_size=0").mistake == "test_size must be at least 1, not 0"
    assert not Path("runs").exists()
