"""The fast forms against keys and values made for every pair, written out."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from svf_rl.attention import selective
from svf_rl.attention.host import rotate
from svf_rl.studies.scratch import most_held


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def turn(length: int, width: int) -> tuple[Tensor, Tensor]:
    angles = torch.arange(length)[:, None] / 10000 ** (torch.arange(width // 2) * 2 / width)
    doubled = angles.double().repeat(1, 2)[None]
    return doubled.cos(), doubled.sin()


@pytest.mark.parametrize("rope", [True, False])
def test_side_by_side_is_attention_with_a_bias_and_a_skip(rope: bool) -> None:
    """In float64 to rounding, of concatenated pairs mapped as the seed maps them: K = [q; x] W_k, V = [q; x] W_v."""
    q, x = random(2, 2, 9, 8), random(2, 2, 9, 8, seed=1)
    w_key, w_value = random(16, 8, seed=2), random(16, 8, seed=3)
    turned = turn(9, 8) if rope else None
    visible = torch.ones(9, 9, dtype=torch.bool).tril()
    pairs = torch.cat([q[:, :, :, None].expand(-1, -1, -1, 9, -1), x[:, :, None].expand(-1, -1, 9, -1, -1)], -1)
    keys, values = pairs @ w_key, pairs @ w_value
    keys = torch.stack([rotate(keys[:, :, i], turned) for i in range(9)], 2)
    scores = torch.einsum("bhtd,bhtsd->bhts", rotate(q, turned), keys) / math.sqrt(8)
    truth = torch.einsum("bhts,bhtsd->bhtd", scores.masked_fill(~visible, -torch.inf).softmax(-1), values)
    parts = (rotate(q, turned), rotate(x @ w_key[8:], turned), x @ w_value[8:], q @ w_key[:8], q @ w_value[:8], turned, visible)
    assert torch.allclose(selective.fast(*parts), truth, atol=1e-12)
    assert torch.allclose(selective.naive(*parts), truth, atol=1e-12)
    if not rope:  # then the query's share of the keys changes nothing at all
        assert torch.allclose(selective.fast(*parts[:3], 0 * parts[3], *parts[4:]), truth, atol=1e-12)


@pytest.mark.parametrize("keys", [70, 90])
def test_pairs_in_blocks_are_pairs_at_once(keys: int) -> None:
    """More than two blocks of queries, with and without keys before the first; gradients by autograd of all pairs at once."""
    visible = torch.ones(70, keys, dtype=torch.bool).tril(keys - 70)
    weights = random(2, 3, 70, keys).masked_fill(~visible, -torch.inf).softmax(-1).requires_grad_()
    query, key = random(2, 3, 70, 4, seed=1).requires_grad_(), random(2, 3, keys, 4, seed=2).requires_grad_()
    truth = torch.einsum("bhts,bhtsm->bhtm", weights, F.gelu(query[:, :, :, None] + key[:, :, None]))
    slopes = torch.autograd.grad(truth.square().sum(), (weights, query, key))
    found = selective.Pairwise.apply(weights, query, key)
    assert torch.allclose(found, truth, atol=1e-12)
    mine = torch.autograd.grad(found.square().sum(), (weights, query, key))
    assert torch.allclose(mine[0] * visible, slopes[0] * visible, atol=1e-10)
    assert all(torch.allclose(one, right, atol=1e-10) for one, right in zip(mine[1:], slopes[1:], strict=True))


def test_pairs_are_never_held_at_once() -> None:
    """Forward and backward, of 16 hidden units for each of 512 x 512 pairs: less than half of what those alone would take."""
    weights = torch.rand(1, 2, 512, 512).tril().requires_grad_()
    query, key = (torch.rand(1, 2, 512, 16).requires_grad_() for _ in range(2))
    most = most_held(lambda: selective.Pairwise.apply(weights, query, key).square().sum().backward()) * 2**20
    assert 2 * weights.numel() * 4 < most < weights.numel() * 16 * 4 / 2  # both sides: something was measured at all
