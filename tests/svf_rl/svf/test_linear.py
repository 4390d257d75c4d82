"""One adapted layer against x W'ᵀ + b written out in float64."""

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from svf_rl.svf import linear
from svf_rl.svf.linear import Stack, SVFLinear, _project, stack_alike
from svf_rl.types import Factors

# (out, in, rank): square, tall, wide, truncated
SHAPES = [(6, 6, 6), (9, 5, 5), (5, 9, 5), (8, 7, 3)]
FEW, MANY = 2, 200  # tokens: fewer than any rank, and more than any side


def seeded(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make(out: int, inner: int, rank: int, conv: bool, bias: bool) -> tuple[SVFLinear, nn.Parameter, Tensor]:
    """A layer over a random weight, its z, and the weight as [out, in]."""
    weight = seeded(out, inner, seed=1)
    base: nn.Module = Conv1D(out, inner) if conv else nn.Linear(inner, out, bias=bias)
    base.weight = nn.Parameter(weight.T.contiguous() if conv else weight.clone(), requires_grad=False)
    if base.bias is not None:
        base.bias = nn.Parameter(seeded(out, seed=2), requires_grad=False)
    u, s, vt = torch.linalg.svd(weight, full_matrices=False)
    z = nn.Parameter(seeded(rank, seed=3).mul(0.3).exp())
    factors = Factors(u[:, :rank].contiguous(), s[:rank].contiguous(), vt[:rank].contiguous())
    return SVFLinear(base, factors, lambda: z, lambda: z._version), z, weight


def truth(layer: SVFLinear, weight: Tensor, x: Tensor, z: Tensor) -> Tensor:
    """x (W + U diag(s (z - 1)) Vt)ᵀ + b in float64."""
    change = layer.U.double() @ torch.diag(layer.s.double() * (z - 1)) @ layer.Vt.double()
    bias = 0 if layer.base.bias is None else layer.base.bias.double()
    return x @ (weight.double() + change).T + bias


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("conv", "bias"), [(False, False), (False, True), (True, True)])
@pytest.mark.parametrize("tokens", [FEW, MANY])
def test_value_and_gradients(shape: tuple[int, int, int], conv: bool, bias: bool, tokens: int) -> None:
    layer, z, weight = make(*shape, conv, bias)
    x = seeded(2, tokens // 2, shape[1], seed=4).requires_grad_()
    loss = seeded(2, tokens // 2, shape[0], seed=5)
    y = layer(x)
    (y * loss).sum().backward()
    z64, x64 = z.detach().double().requires_grad_(), x.detach().double().requires_grad_()
    expected = truth(layer, weight, x64, z64)
    (expected * loss).sum().backward()
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)
    assert z.grad is not None
    assert x.grad is not None
    torch.testing.assert_close(z.grad.double(), z64.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(x.grad.double(), x64.grad, rtol=1e-4, atol=1e-5)
    assert layer.base.weight.grad is None


@pytest.mark.parametrize("tokens", [FEW, MANY])
@pytest.mark.parametrize("shape", SHAPES)
def test_gradient_is_the_slope(shape: tuple[int, int, int], tokens: int) -> None:
    """The output is linear in z, so a difference over any step is exact: here over steps of 1."""
    layer, z, _ = make(*shape, conv=False, bias=True)
    x, loss = seeded(tokens, shape[1], seed=6), seeded(tokens, shape[0], seed=7)
    (layer(x) * loss).sum().backward()
    slopes = []
    for i in range(len(z)):
        ends = []
        for step in (0.5, -1.0):
            with torch.no_grad():
                z[i] += step
                ends.append(float((layer(x) * loss).double().sum()))
        with torch.no_grad():
            z[i] += 0.5
        slopes.append(ends[0] - ends[1])
    assert z.grad is not None
    torch.testing.assert_close(z.grad, torch.tensor(slopes), rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("tokens", [1, 3, 4, 5, 6, 7, 50, 1000])
def test_both_ways_of_projecting_agree(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """For a square matrix of full rank the first way is the cheaper one from `rank` tokens on."""
    n = 5
    dy, x = seeded(tokens, n, seed=8).double(), seeded(tokens, n, seed=9).double()
    u, vt = torch.linalg.qr(seeded(n, n, seed=10).double())[0], torch.linalg.qr(seeded(n, n, seed=11).double())[0]
    expected = torch.stack([sum((dy[t] @ u[:, i]) * (x[t] @ vt[i]) for t in range(tokens)) for i in range(n)])
    torch.testing.assert_close(_project(dy, x, u, vt), expected)


def test_cost_of_the_backward_pass() -> None:
    """Operations, counted by torch: close to the cheaper way for few and for many tokens, far below the other one."""
    from torch.utils.flop_counter import FlopCounterMode

    n, rank = 64, 64
    u, vt = torch.eye(n), torch.eye(n)
    for tokens in (4, 4096):
        dy, x = torch.ones(tokens, n), torch.ones(tokens, n)
        with FlopCounterMode(display=False) as counter:
            _project(dy, x, u, vt)
        ways = (2 * n * n * (tokens + rank), 2 * tokens * rank * (n + n))
        assert counter.get_total_flops() == min(ways)


def test_a_frozen_z_needs_no_gradient() -> None:
    layer, z, weight = make(6, 6, 6, conv=False, bias=True)
    z.requires_grad_(False)
    x = seeded(3, 4, 6, seed=12).requires_grad_()
    y = layer(x)
    torch.testing.assert_close(y.double(), truth(layer, weight, x.double(), z.double()), rtol=1e-5, atol=1e-5)
    y.sum().backward()
    assert x.grad is not None
    assert z.grad is None


def test_gradients_add_up_over_micro_batches() -> None:
    layer, z, _ = make(6, 6, 6, conv=False, bias=True)
    x, loss = seeded(40, 6, seed=13), seeded(40, 6, seed=14)
    (layer(x) * loss).sum().backward()
    assert z.grad is not None
    whole, z.grad = z.grad, None
    for part, weight in zip(x.split(7), loss.split(7), strict=True):
        (layer(part) * weight).sum().backward()
    torch.testing.assert_close(z.grad, whole, rtol=1e-4, atol=1e-4)


def test_a_second_derivative_is_refused() -> None:
    layer, z, _ = make(6, 6, 6, conv=False, bias=True)
    (first,) = torch.autograd.grad(layer(seeded(3, 6, seed=15)).square().sum(), z, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_nothing_of_the_size_of_the_weight_is_kept_per_call() -> None:
    """What one call saves for its backward pass, beyond the input, is shared by all calls."""
    layer, _, _ = make(6, 6, 6, conv=False, bias=True)
    saved: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    inputs = [seeded(3, 6, seed=16), seeded(3, 6, seed=17)]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        outputs = [layer(x) for x in inputs]
    assert len(outputs) == 2
    own = {t.data_ptr() for t in saved} - {x.data_ptr() for x in inputs}
    assert len(saved) == 10
    assert len(own) == 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("conv", [False, True])
def test_layers_of_one_shape_are_merged_together(conv: bool, dtype: torch.dtype) -> None:
    """Each as it would be alone, the base where z = 1, and only again when z has changed."""
    made = [make(9, 5, 5, conv, bias=True)[:2] for _ in range(3)]
    layers, zs = [layer.to(dtype=dtype) for layer, _ in made], [z for _, z in made]
    for layer in layers:
        layer.U, layer.s, layer.Vt = (part.float() for part in (layer.U, layer.s, layer.Vt))
    with torch.no_grad():
        zs[1].fill_(1.0)
        zs[2].mul_(0.5)
    alone = [Stack([layer]).merge() or layer.merged(z) for layer, z in zip(layers, zs, strict=True)]
    stack_alike(layers)
    assert len({layer.stack for layer in layers}) == 1
    for layer, z, expected in zip(layers, zs, alone, strict=True):
        torch.testing.assert_close(layer.merged(z), expected)
    assert torch.equal(layers[1].merged(zs[1]), layers[1].base.weight)
    before = layers[0].merged(zs[0])
    assert layers[0].merged(zs[0]) is before
    with torch.no_grad():
        zs[2].mul_(0.5)
    assert not torch.equal(layers[2].merged(zs[2]), alone[2])
    assert torch.equal(layers[0].merged(zs[0]), before)


def test_factors_of_a_stack_are_held_once() -> None:
    layers = [make(9, 5, 5, conv=False, bias=True)[0] for _ in range(3)]
    stack_alike(layers)
    for part in ("U", "s", "Vt"):
        assert len({getattr(layer, part).untyped_storage().data_ptr() for layer in layers}) == 1


def test_other_shapes_and_large_matrices_are_merged_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = [make(*shape, conv=False, bias=True)[0] for shape in ((6, 6, 6), (9, 5, 5), (6, 6, 6), (6, 6, 6), (6, 6, 4))]
    monkeypatch.setattr(linear, "TOGETHER", 2 * 36)
    stack_alike(layers)
    assert [len(layer.stack.layers) for layer in layers] == [2, 1, 2, 1, 1]


def test_of_a_product_its_factors_are_kept() -> None:
    """They are kept for the product's own gradient anyway; the gradients are the same, bit for bit."""
    layer, z, _ = make(6, 6, 6, conv=False, bias=True)
    gate, up = seeded(50, 6, seed=18).requires_grad_(), seeded(50, 6, seed=19).requires_grad_()
    loss, saved = seeded(50, 6, seed=20), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.data_ptr()) or t, lambda t: t):
        x = gate.exp() * up
        y = layer(x)
    assert x.data_ptr() not in saved
    found = torch.autograd.grad((y * loss).sum(), [z, gate, up])
    plain = (gate.exp() * up) + 0  # a sum keeps nothing
    assert all(
        torch.equal(a, b) for a, b in zip(found, torch.autograd.grad((layer(plain) * loss).sum(), [z, gate, up]), strict=True)
    )
