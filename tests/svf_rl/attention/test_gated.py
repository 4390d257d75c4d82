"""Gates against their definition, and the penalty's loophole of the published models."""

from typing import Any

import pytest
import torch

from svf_rl.attention import gated
from svf_rl.attention.gated import GatedConfig, Output
from svf_rl.base.load import Base
from svf_rl.errors import UserError


@torch.no_grad()
def test_heads_are_gated_after_the_softmax(backends: dict[str, Base], adapt: Any) -> None:
    base, ids = backends["qwen2-sdpa"], torch.arange(14).view(2, 7)
    adapter = adapt(base, GatedConfig(rank=2))
    host, patch = next(iter(adapter.hosts.values())), next(iter(adapter.patches.values()))
    host.looking = True
    base.model(input_ids=ids)
    host.looking = False
    call = host.take()
    a = 1 + torch.einsum("bti,hri->bhtr", call.hidden, patch.query_gate.view(4, 2, -1))
    c = 1 + torch.einsum("bti,hri->bhtr", call.hidden, patch.key_gate.view(4, 2, -1))
    pairs = (torch.einsum("bhir,bhjr->bhij", a, c) / 2).clamp(0, 1)
    output = 2 * torch.sigmoid(call.hidden @ patch.output.T + patch.output_bias)
    values = call.value.repeat_interleave(2, 1)
    heads = ((pairs * call.weights()) @ values).transpose(1, 2) * output[..., None]
    assert torch.allclose(call.masks * call.visible[:, None], pairs * call.visible[:, None], atol=1e-5)
    assert torch.allclose(patch.attend(call), heads, atol=1e-4)


def test_a_closed_gate_can_come_back() -> None:
    x = torch.tensor([-1.0, 0.5, 2.0], requires_grad=True)
    y = gated.leaky_clamp(x)
    assert y.tolist() == [0.0, 0.5, 1.0]
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == pytest.approx([0.1, 1.1, 0.1])


def test_hard_gates_are_zero_as_often_as_they_say() -> None:
    logits, uniform = torch.full((20000,), -0.5), torch.rand(20000, generator=torch.Generator().manual_seed(0))
    open_share = float((gated.hard_concrete(logits, uniform) > 0).float().mean())
    assert open_share == pytest.approx(float(gated.open_probability(logits)[0]), abs=0.01)


def test_the_penalty_is_of_what_heads_say_not_of_how_it_is_scaled(backends: dict[str, Base], adapt: Any) -> None:
    """Published: a tiny gate on huge values is cheap. Here gates a tenth as open, on values ten times as large, cost the same."""
    base, ids = backends["llama-eager"], torch.arange(7)[None]
    adapter = adapt(base, GatedConfig(rank=0, output=Output.hard, penalty=1.0), stirred=False)
    host, patch = next(iter(adapter.hosts.values())), next(iter(adapter.patches.values()))
    host.looking = True
    base.model(input_ids=ids)
    call = host.take()
    host.looking = False
    open_, small = torch.ones(1, 7, 4), torch.full((1, 7, 4), 0.1)
    call.gates = open_
    patch._measure(call, call.weights(), None)
    first = patch.penalty
    call.gates, call.value = small, call.value * 10
    patch._measure(call, call.weights(), None)
    assert float(patch.penalty.detach()) == pytest.approx(float(first.detach()), rel=1e-4)


def test_settings_are_checked() -> None:
    with pytest.raises(UserError, match="output gate or a rank"):
        GatedConfig(output=Output.none, rank=0)
