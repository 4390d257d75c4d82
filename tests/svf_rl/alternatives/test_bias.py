"""Steering vectors against hooks on the layers themselves."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from svf_rl.adapters import ADAPTERS, make_adapter
from svf_rl.alternatives.swapped import SwappedAdapter
from svf_rl.base.load import Base
from svf_rl.errors import BaseError


def test_the_vector_is_added_to_the_residual_stream_after_each_layer(
    base: Base,
    make: Callable[..., SwappedAdapter],
    moved: Callable[[SwappedAdapter], SwappedAdapter],
    logits: Callable[[Base], Tensor],
) -> None:
    adapter = moved(make(base, "bias"))
    found, vectors = logits(base), list(adapter.state().values())
    adapter.uninstall()
    layers: Any = base.model.base_model.h if base.model.config.model_type == "gpt2" else base.model.base_model.layers
    hooks = [
        layer.register_forward_hook(lambda module, args, out, b=b: (out[0] + b, *out[1:]) if isinstance(out, tuple) else out + b)
        for layer, b in zip(layers, vectors, strict=True)
    ]
    try:
        torch.testing.assert_close(found, logits(base), atol=1e-3, rtol=1e-3)
    finally:
        for hook in hooks:
            hook.remove()


def test_every_architecture_has_one_vector_per_layer(architectures: dict[str, Base]) -> None:
    for base in architectures.values():
        state = make_adapter(base, ADAPTERS["bias"].settings()).state()
        assert [vector.shape for vector in state.values()] == [(48,), (48,)]


def test_layers_without_a_last_matrix_are_refused(tiny_base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    block: Any = tiny_base.model.model.layers[0].mlp
    monkeypatch.setitem(block._modules, "down_proj", nn.Identity())
    with pytest.raises(BaseError, match="expects one matrix in each of 2 layers"):
        make_adapter(tiny_base, ADAPTERS["bias"].settings())
