"""Bases with an adapter installed, and models with W' = U diag(s z) Vt written out, to compare it with."""

import copy
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from svf_rl.base.load import Base, BaseConfig, load_base
from svf_rl.svf.adapter import SVFAdapter
from svf_rl.svf.factorize import factorize
from svf_rl.types import Expert

Adapt = Callable[..., AbstractContextManager[SVFAdapter]]


@pytest.fixture(scope="session")
def bfloat16_bases(architecture_folders: dict[str, Path]) -> dict[str, Base]:
    configs = {name: BaseConfig(path=str(path), dtype="bfloat16", device="cpu") for name, path in architecture_folders.items()}
    return {name: load_base(config) for name, config in configs.items()}


@pytest.fixture(params=["float32", "bfloat16"])
def typed_base(request: pytest.FixtureRequest, base: Base, bfloat16_bases: dict[str, Base]) -> Base:
    """Every architecture in both types."""
    return base if request.param == "float32" else bfloat16_bases[Path(base.name).name]


@pytest.fixture
def adapt() -> Adapt:
    """A context with an adapter installed; it is uninstalled at the end, whatever happens."""

    @contextmanager
    def installed(base: Base, targets: str = "attention+mlp", rank: int | None = None, **options: Any) -> Iterator[SVFAdapter]:
        adapter = SVFAdapter(base.model, factorize(base, targets, rank), **options)
        adapter.install()
        try:
            yield adapter
        finally:
            adapter.uninstall()

    return installed


@pytest.fixture
def random_expert() -> Callable[[SVFAdapter, int], Expert]:
    """An expert with values between 0.5 and 2."""

    def draw(adapter: SVFAdapter, seed: int) -> Expert:
        return Expert({name: uniform(raw.shape, seed, name).mul(1.386).sub(0.693).exp() for name, raw in adapter.raw.items()})

    return draw


def uniform(shape: torch.Size, seed: int, name: str) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed + zlib.crc32(name.encode())))


@pytest.fixture
def ids() -> Tensor:
    """Three rows, longer than Mistral's window."""
    return torch.randint(0, 300, (3, 12), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def dense() -> Callable[[Base, dict[str, Tensor]], Callable[[Tensor], Tensor]]:
    """The base in float64 with the weights of some layers replaced by given matrices [out, in]; differentiable in them."""

    def build(base: Base, weights: dict[str, Tensor]) -> Callable[[Tensor], Tensor]:
        model = copy.deepcopy(base.model).double()
        transposed = base.model.config.model_type == "gpt2"
        replaced = {f"{name}.weight": w.T if transposed else w for name, w in weights.items()}

        def logits(ids: Tensor) -> Tensor:
            return torch.func.functional_call(model, replaced, args=(), kwargs={"input_ids": ids}).logits

        return logits

    return build
