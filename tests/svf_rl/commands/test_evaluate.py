"""What `svf-rl evaluate` prints is what an evaluation by other means finds."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import pytest
import scipy.stats
import torch

from svf_rl.adapters import make_adapter, open_adapter, save_adapter
from svf_rl.base.load import Base
from svf_rl.svf.adapter import SVFConfig

ABOUT = {"base": "tiny", "environment": "toys", "command": "svf-rl train", "revision": "abc", "metrics": {"n_test": 3}}


@pytest.fixture
def letter(architecture_folders: dict[str, Path]) -> list[str]:
    """Words that ask a random base for a letter, 30 times."""
    env = ["env=math", "env.id=toys:toys/Letter-v0", "env.name=letter", "env.max_tokens=3"]
    return ["evaluate", f"base={architecture_folders['llama']}", *env, "size=30"]


@pytest.fixture
def expert(tiny_base: Base, tmp_path: Path) -> Path:
    """An expert that moves every z at random."""
    adapter, path = make_adapter(tiny_base, SVFConfig()), tmp_path / "expert.safetensors"
    torch.manual_seed(0)
    with torch.no_grad():
        for z in adapter.parameters().values():
            z.add_(0.5 * torch.randn_like(z)).clamp_(0.6, 1.9)
    save_adapter(path, adapter, SVFConfig(), {**ABOUT, "fingerprint": tiny_base.fingerprint})
    return path


def rewards(base: Base, split: str = "test") -> list[float]:
    """Greedy answers by transformers' own generate, one at a time, and their rewards."""
    env, found = gymnasium.make("toys:toys/Letter-v0", disable_env_checker=True), []
    for index in range(30):
        prompt, _ = env.reset(options={"split": split, "index": index})
        ids = torch.tensor([base.codec.prompt(prompt)])
        written = base.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, do_sample=False, pad_token_id=0)
        found.append(float(env.step(base.codec.decode(written[0, ids.shape[1] :].tolist()))[1]))
    return found


def percent(right: float, n: int) -> str:
    low, high = scipy.stats.binomtest(int(right), n).proportion_ci(method="wilson")
    return f"{100 * right / n:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


@pytest.mark.parametrize("split", ["test", "train"])
def test_the_base_alone(svf_rl: Callable[..., Any], letter: list[str], tiny_base: Base, split: str) -> None:
    done = svf_rl(*letter, f"split={split}")
    assert done.code == 0
    found = rewards(tiny_base, split)
    assert f"letter, {split}, greedy, n = 30: {percent(sum(found), 30)}" in done.out


def test_base_and_expert(svf_rl: Callable[..., Any], letter: list[str], tiny_base: Base, expert: Path) -> None:
    done = svf_rl(*letter, f"expert={expert}")
    assert done.code == 0
    before = rewards(tiny_base)
    opened, _ = open_adapter(expert, tiny_base)
    opened.install()
    after = rewards(tiny_base)
    opened.uninstall()
    figures = [f"{100 * sum(r) / 30:.1f} %" for r in (before, after)]
    rows = [line for line in done.out.splitlines() if line.startswith(("│ base", "│ expert"))]
    assert all(figure in row for figure, row in zip(figures, rows, strict=True))
    assert f"{100 * (sum(after) - sum(before)) / 30:+.1f} %" in done.out
    about = json.loads(done.out[done.out.index('{\n  "expert"') :])
    assert about["expert"]["environment"] == "toys"


def test_sampled_answers_depend_on_the_seed_alone(svf_rl: Callable[..., Any], letter: list[str]) -> None:
    runs = [svf_rl(*letter, "temperature=1", f"seed={seed}", *more).out for seed, *more in ((0,), (0, "rows=7"), (1,), (2,))]
    assert runs[0] == runs[1]
    assert len(set(runs)) > 1
    assert "sampled at temperature 1, n = 30" in runs[0]
    assert svf_rl(*letter, "temperature=1", "seed=0,1").out == runs[0] + runs[2]


def test_answers_that_were_lost_are_counted(svf_rl: Callable[..., Any], letter: list[str]) -> None:
    gymnasium.register("toys/Cracked-v0", entry_point="toys:Broken", kwargs={"split": "all", "every": 3})
    try:
        assert "n = 20, 10 lost to faults" in svf_rl(*letter, "env.id=toys/Cracked-v0").out
    finally:
        del gymnasium.registry["toys/Cracked-v0"]


def test_an_expert_of_another_base_is_refused_before_anything_slow(
    svf_rl: Callable[..., Any], letter: list[str], architecture_folders: dict[str, Path], expert: Path
) -> None:
    words = [word for word in letter if not word.startswith("base=")]
    done = svf_rl(*words, f"base={architecture_folders['qwen2']}", f"expert={expert}")
    assert "trained on the base 'tiny'" in done.mistake
    expert.write_bytes(expert.read_bytes()[:-5])
    assert "cannot read the expert" in svf_rl(*letter, f"expert={expert}").mistake
