"""Full fine-tuning: every weight, the tied ones together, in float32 beside a base of another type."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from svf_rl.adapters import ADAPTERS, make_adapter
from svf_rl.alternatives.swapped import SwappedAdapter
from svf_rl.base.load import Base
from svf_rl.errors import BaseError

Make = Callable[..., SwappedAdapter]
Moved = Callable[[SwappedAdapter], SwappedAdapter]
Logits = Callable[[Base], Tensor]


def test_every_weight_is_trained_and_counts(base: Base, make: Make, moved: Moved, logits: Logits, ids: Tensor) -> None:
    names = dict(base.model.named_parameters()).keys()
    adapter = moved(make(base, "full"))
    found, state = logits(base), adapter.state()
    adapter.uninstall()
    assert state.keys() == names
    expected = torch.func.functional_call(base.model, state, (ids,)).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_tied_weights_stay_tied(architectures: dict[str, Base], make: Make) -> None:
    base = architectures["qwen3"]
    adapter = make(base, "full")
    assert base.model.get_output_embeddings().weight is base.model.get_input_embeddings().weight
    assert "lm_head.weight" not in adapter.parameters()


def test_the_modules_own_weight_is_the_tuned_one(half_bases: dict[str, Base], make: Make, moved: Moved) -> None:
    for base in half_bases.values():
        adapter = moved(make(base, "full"))
        weights = dict(base.model.named_parameters())
        for name, parameter in adapter.parameters().items():
            assert torch.equal(weights[name], parameter.bfloat16())


def test_a_step_in_float32_reaches_a_base_in_bfloat16(half_bases: dict[str, Base], make: Make, logits: Logits) -> None:
    base = half_bases["llama"]
    adapter = make(base, "full")
    optimizer = torch.optim.SGD(adapter.parameters().values(), lr=1.0)
    before = logits(base).detach()
    for _ in range(2):  # two micro-batches through the same conversion
        before_loss = logits(base).log_softmax(-1)[..., 0].mean()
        (-before_loss).backward()
    optimizer.step()
    adapter.constrain()
    assert not torch.equal(logits(base), before)
    assert logits(base).log_softmax(-1)[..., 0].mean() > before_loss


def test_weights_without_gradients_are_refused(tiny_base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = torch.nn.Parameter(torch.zeros(2, dtype=torch.int8), requires_grad=False)
    monkeypatch.setitem(tiny_base.model.model.norm._parameters, "weight", whole)
    with pytest.raises(BaseError, match="model.norm.weight cannot be trained"):
        make_adapter(tiny_base, ADAPTERS["full"].settings())
