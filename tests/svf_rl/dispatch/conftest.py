"""Random experts of the tiny base, in memory and as a library of files."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from svf_rl.base.load import Base
from svf_rl.svf.adapter import SVFAdapter
from svf_rl.svf.expert import save_expert
from svf_rl.svf.factorize import factorize
from svf_rl.types import Expert

ABOUT = {"base": "tiny", "targets": "attention+mlp", "rank": None, "parametrisation": "direct", "command": "", "revision": ""}


@pytest.fixture
def adapter(base: Base) -> Iterator[SVFAdapter]:
    """Installed in the base of the test."""
    installed = SVFAdapter(base.model, factorize(base, "attention+mlp"))
    installed.install()
    yield installed
    installed.uninstall()


@pytest.fixture
def draw(base: Base, adapter: SVFAdapter) -> Callable[..., Expert]:
    """An expert of an environment, its values between 0.5 and 2 drawn from a seed."""

    def make(seed: int, env: str = "toys:toys/Letter-v0", accuracy: float = 0.5, fingerprint: str = "") -> Expert:
        stream = torch.Generator().manual_seed(seed)
        z = {n: (torch.rand(s.shape, generator=stream) * 1.386 - 0.693).exp() for n, s in adapter.spectra.items()}
        metrics = {"base_accuracy": 0.1, "expert_accuracy": accuracy}
        return Expert(z, {**ABOUT, "fingerprint": fingerprint or base.fingerprint, "environment": env, "metrics": metrics})

    return make


@pytest.fixture
def shelf(tmp_path: Path) -> Callable[..., Path]:
    """A folder that holds the experts given by name."""

    def make(**experts: Expert) -> Path:
        for name, expert in experts.items():
            (tmp_path / "shelf" / name).mkdir(parents=True, exist_ok=True)
            save_expert(tmp_path / "shelf" / name / "expert.safetensors", expert)
        return tmp_path / "shelf"

    return make
