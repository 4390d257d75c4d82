"""Every alternative, made small, on bases of three architectures; whatever a test does, the base is given back as it was."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from svf_rl.adapters import ADAPTERS, make_adapter
from svf_rl.alternatives.swapped import SwappedAdapter
from svf_rl.base.load import Base, BaseConfig, load_base

ARCHITECTURES = ["llama", "qwen2", "gpt2"]


@pytest.fixture(params=ARCHITECTURES)
def base(request: pytest.FixtureRequest, architectures: dict[str, Base]) -> Base:
    """Grouped and biased projections, and GPT-2's transposed ones."""
    return architectures[request.param]


@pytest.fixture(scope="session")
def half_bases(architecture_folders: dict[str, Path]) -> dict[str, Base]:
    configs = {name: BaseConfig(str(architecture_folders[name]), dtype="bfloat16", device="cpu") for name in ARCHITECTURES}
    return {name: load_base(config) for name, config in configs.items()}


@pytest.fixture
def make() -> Iterator[Callable[..., SwappedAdapter]]:
    """make(base, "lora", rank=1): an installed adapter."""
    made: list[Any] = []

    def installed(base: Base, name: str, **settings: Any) -> Any:
        made.append(make_adapter(base, ADAPTERS[name].settings(**settings)))
        made[-1].install()
        return made[-1]

    yield installed
    for adapter in made:
        adapter.uninstall()


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(0, 300, (3, 12), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def logits(ids: Tensor) -> Callable[[Base], Tensor]:
    """Of every token of `ids`, differentiable."""
    return lambda base: base.logits(base.hidden(ids))


@pytest.fixture
def moved() -> Callable[[SwappedAdapter], SwappedAdapter]:
    """Every trained number moved by about a tenth."""

    def move(adapter: SwappedAdapter) -> SwappedAdapter:
        generator = torch.Generator().manual_seed(1)
        state = adapter.state()
        adapter.load_state({name: t + 0.1 * torch.randn(t.shape, generator=generator) for name, t in state.items()})
        return adapter

    return move
