"""Experts of the tiny base in files, and a column of its toy environment."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from svf_rl.adapters import make_adapter, save_adapter
from svf_rl.base.load import Base
from svf_rl.evaluate.cells import Column, environment_column
from svf_rl.rollout.episodes import EnvConfig
from svf_rl.svf.adapter import SVFConfig

ABOUT = {"base": "tiny", "command": "svf-rl train", "revision": "abc", "metrics": {"n_test": 3}}


@pytest.fixture
def save_expert_of(tiny_base: Base, tmp_path: Path) -> Callable[..., Path]:
    """An expert whose every z has moved at random, in a folder of its name."""

    def save(name: str, seed: int = 0, environment: str = "toys:toys/Letter-v0") -> Path:
        adapter, path = make_adapter(tiny_base, SVFConfig()), tmp_path / "experts" / name / "expert.safetensors"
        torch.manual_seed(seed)
        with torch.no_grad():
            for z in adapter.parameters().values():
                z.add_(0.5 * torch.randn_like(z)).clamp_(0.6, 1.9)
        path.parent.mkdir(parents=True, exist_ok=True)
        about: dict[str, Any] = {**ABOUT, "environment": environment, "fingerprint": tiny_base.fingerprint}
        save_adapter(path, adapter, SVFConfig(), about)
        return path

    return save


@pytest.fixture
def column() -> Column:
    return environment_column(EnvConfig("letter", "toys:toys/Letter-v0", 3), "test", 20)
