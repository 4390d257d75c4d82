"""Gates against their definition, and the penalty's loophole of the published models."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

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


HARD = GatedConfig(output=Output.hard)


def hard_gate(logit: float, uniform: Tensor) -> Tensor:
    """Louizos et al. 2018, equations 10 and 11: s = sigmoid((log u - log(1 - u) + log alpha) / beta), stretched, not clamped."""
    u = uniform.double()
    return 1.2 / (1 + torch.exp(-(u.log() - (1 - u).log() + logit) * 1.5)) - 0.1


def drawn(patch: Any, steps: int) -> Tensor:
    """The gates [steps, heads] of as many steps, of a token without any input."""
    found = []
    for _ in range(steps):
        found.append(patch.output_gates(torch.zeros(1, 1, patch.output.shape[1])).detach()[0, 0])
        patch.constrain()
    return torch.stack(found)


def test_hard_gates_are_drawn_where_there_is_a_gradient(backends: dict[str, Base], adapt: Any) -> None:
    """As often 0, and as often 1, as the distribution says; every head and layer on its own. Without a gradient, the mode."""
    patches = list(adapt(backends["llama-sdpa"], HARD, stirred=False).patches.values())
    for patch in patches:
        patch.output_bias.data.fill_(-0.5)
    gates = [drawn(patch, 2000) for patch in patches]
    shut, full = (gates[0] == 0).double().mean(), (gates[0] == 1).double().mean()
    assert float(shut) == pytest.approx(1 / (1 + math.exp(-0.5 + 2 / 3 * math.log(11))), abs=0.015)
    assert float(shut) == pytest.approx(1 - float(gated.open_probability(torch.tensor(-0.5))), abs=0.015)
    assert float(full) == pytest.approx(1 / (1 + math.exp(0.5 + 2 / 3 * math.log(11))), abs=0.015)
    together = torch.cat(gates[:2], 1)
    assert float((torch.corrcoef(together.T) - torch.eye(together.shape[1])).abs().max()) < 0.08
    assert abs(float(torch.corrcoef(torch.stack([gates[0][1:, 0], gates[0][:-1, 0]]))[0, 1])) < 0.08
    with torch.no_grad():
        mode = drawn(patches[0], 2)
    torch.testing.assert_close(mode, torch.full_like(mode, 1.2 / (1 + math.exp(0.5)) - 0.1))


def test_a_gate_that_is_0_in_its_mode_learns_through_the_noise(backends: dict[str, Base], adapt: Any) -> None:
    """Its mean gradient is the slope of the mean gate (by quadrature, with a tenth of that of the unclamped one), 6 times what the
    mode has; and by it the gate returns."""
    patch = next(iter(adapt(backends["llama-sdpa"], HARD, stirred=False).patches.values()))
    patch.output_bias.data.fill_(-3.0)
    nothing, slopes = torch.zeros(1, 1, patch.output.shape[1]), []
    with torch.no_grad():
        assert patch.output_gates(nothing).tolist() == [[[0.0] * 4]]
    for _ in range(2000):
        slopes.append(torch.autograd.grad(patch.output_gates(nothing).sum(), patch.output_bias)[0])
        patch.constrain()
    u = (torch.arange(100_000).double() + 0.5) / 100_000
    means = [(x.clamp(0, 1) + 0.1 * x).mean() for x in (hard_gate(-3.001, u), hard_gate(-2.999, u))]
    truth = float(means[1] - means[0]) / 0.002
    assert float(torch.stack(slopes).mean()) == pytest.approx(truth, rel=0.1)
    assert truth > 6 * 0.1 * 1.2 * math.exp(3) / (1 + math.exp(3)) ** 2
    optimizer = torch.optim.SGD([patch.output_bias], lr=2.0)
    for _ in range(200):
        optimizer.zero_grad()
        (patch.output_gates(nothing) - 1).square().sum().backward()
        optimizer.step()
        patch.constrain()
    with torch.no_grad():
        assert float(patch.output_gates(nothing).min()) > 0.5


def test_a_training_that_goes_on_draws_what_it_would_have_drawn(backends: dict[str, Base], adapt: Any, ids: Tensor) -> None:
    base = backends["llama-sdpa"]

    def train(steps: int, state: dict[str, Tensor] | None = None) -> tuple[dict[str, Tensor], Tensor]:
        adapter = adapt(base, HARD, stirred=False)
        adapter.load_state(state or adapter.state())
        optimizer = torch.optim.SGD([p for p in adapter.parameters().values() if p.requires_grad], lr=10.0)
        for _ in range(steps):
            optimizer.zero_grad()
            base.model(input_ids=ids).logits.square().mean().backward()
            optimizer.step()
            adapter.constrain()
        last = base.model(input_ids=ids).logits.detach()
        adapter.uninstall()
        return adapter.state(), last

    whole, last = train(6)
    gone_on, found = train(3, train(3)[0])
    assert torch.equal(found, last)
    assert all(torch.equal(tensor, whole[name]) for name, tensor in gone_on.items())
    assert not torch.equal(train(0)[1], train(0, {n: t + n.endswith("steps") for n, t in train(0)[0].items()})[1])


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
