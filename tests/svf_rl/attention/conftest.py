"""Bases of three architectures on both attention backends, and every attention module in every form, at rest and stirred."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from svf_rl.adapters import make_adapter
from svf_rl.attention import host
from svf_rl.attention.adapter import AttentionAdapter
from svf_rl.attention.gated import GatedConfig, GatedPatch, Output
from svf_rl.attention.selective import Form, SelectiveConfig
from svf_rl.attention.shiftable import KeysValues, Pool, ShiftableConfig
from svf_rl.attention.soft_mask import Form as MaskForm
from svf_rl.attention.soft_mask import Predictor, SoftMaskConfig
from svf_rl.base.load import Base, BaseConfig, fingerprint, load_base

MODULES: dict[str, Any] = {
    "shiftable": ShiftableConfig(entropy=0.1),
    "shiftable-top_k": ShiftableConfig(specialists=4, rank=2, top_k=2, pool=Pool.causal_mean, balance=0.1, sparsity=0.1),
    "shiftable-prompt": ShiftableConfig(specialists=2, pool=Pool.prompt, prompt_tokens=4, sparsity=0.1),
    "shiftable-own": ShiftableConfig(specialists=3, rank=2, top_k=2, pool=Pool.causal_mean, keys_values=KeysValues.own),
    "gated": GatedConfig(rank=1),
    "gated-hard": GatedConfig(output=Output.hard, rank=3, penalty=0.1),
    "gated-output": GatedConfig(rank=0, penalty=0.1),
    "soft_mask": SoftMaskConfig(openness=0.1),
    "soft_mask-original": SoftMaskConfig(form=MaskForm.original, openness=0.1),
    "soft_mask-predicted": SoftMaskConfig(form=MaskForm.original, predictor=Predictor.attention),
    "soft_mask-forget": SoftMaskConfig(form=MaskForm.forget, openness=0.1),
    "soft_mask-selective": SoftMaskConfig(form=MaskForm.selective),
    "selective": SelectiveConfig(),
    "selective-linear": SelectiveConfig(form=Form.linear),
    "selective-nonlinear": SelectiveConfig(form=Form.nonlinear),
}
ARCHITECTURES = ("llama", "qwen2", "gpt2")
BACKENDS = ("eager", "sdpa")


@pytest.fixture(autouse=True)
def pieces(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """Four queries and about two rows at a time, so that short sequences too come in several pieces; or as it is told."""

    def cut(block: int, pairs: int) -> None:
        monkeypatch.setattr(host, "BLOCK", block)
        monkeypatch.setattr(host, "PAIRS", pairs)

    cut(4, 350)
    return cut


@pytest.fixture(scope="session")
def backends(architecture_folders: dict[str, Path]) -> Iterator[dict[str, Base]]:
    """By "architecture-backend"; at the end of the session their weights must be what they were."""
    made = {}
    for name in ARCHITECTURES:
        for backend in BACKENDS:
            base = load_base(BaseConfig(path=str(architecture_folders[name]), device="cpu"))
            base.model.set_attn_implementation(backend)
            made[f"{name}-{backend}"] = base
    yield made
    changed = [name for name, base in made.items() if fingerprint(base.model) != base.fingerprint]
    assert not changed, f"tests changed the weights of {changed}"


WITHOUT_ROPE = ("shiftable-prompt", "gated-hard", "soft_mask-original")  # forms that no rotation touches


def marks(base: str, module: str) -> list[Any]:
    """The other forms of a module are quick tests on one base, and slow ones on the rest."""
    quick = "-" not in module or base == ("gpt2-eager" if module in WITHOUT_ROPE else "qwen2-sdpa")
    return [] if quick else [pytest.mark.slow]


CASES = [
    pytest.param((base, module), marks=marks(base, module), id=f"{base}-{module}")
    for base in (f"{name}-{backend}" for name in ARCHITECTURES for backend in BACKENDS)
    for module in MODULES
]


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, backends: dict[str, Base]) -> tuple[Base, Any]:
    return backends[request.param[0]], MODULES[request.param[1]]


@pytest.fixture
def base(case: tuple[Base, Any]) -> Base:
    return case[0]


@pytest.fixture
def config(case: tuple[Base, Any]) -> Any:
    """Every module in every form, on every base."""
    return case[1]


@pytest.fixture
def ids() -> Tensor:
    """Three rows of eleven tokens."""
    return torch.randint(0, 290, (3, 11), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def no_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hard gates at their mode with a gradient too; all else that such a test says holds of them as of the others."""
    monkeypatch.setattr(GatedPatch, "uniform", lambda patch: None)


def stir(adapter: AttentionAdapter, amount: float = 0.3) -> None:
    """Give every trained tensor values far from its start."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in adapter.parameters().values():
            if parameter.requires_grad:
                parameter.add_(amount * torch.randn(parameter.shape, generator=generator))
    adapter.constrain()


@pytest.fixture
def adapt() -> Iterator[Callable[..., AttentionAdapter]]:
    """adapt(base, config) makes and installs an adapter, stirred unless told otherwise; all are uninstalled at the end."""
    installed: list[AttentionAdapter] = []

    def make(base: Base, config: Any, stirred: bool = True) -> AttentionAdapter:
        adapter = make_adapter(base, config)
        assert isinstance(adapter, AttentionAdapter)
        if stirred:
            stir(adapter)
        adapter.install()
        installed.append(adapter)
        return adapter

    yield make
    for adapter in reversed(installed):
        adapter.uninstall()


@pytest.fixture(params=list(MODULES))
def module(request: pytest.FixtureRequest) -> Any:
    """Every module, in every form."""
    return MODULES[request.param]


@pytest.fixture
def stopping() -> Callable[[Base, set[int]], Base]:
    """The base with other stop tokens."""
    return lambda base, stops: dataclasses.replace(base, codec=dataclasses.replace(base.codec, stop_ids=frozenset(stops)))
