"""Selective attention: keys and values made for every pair of a query and a key, without a tensor of pairs.

    out_i = sum over j of  softmax_j(q_i . K_ij / sqrt(d)) V_ij

linear          K_ij = R_j(a_i) + k_j, V_ij = c_i + v_j, as when query and key are put side by side and mapped. Weights sum to 1 and
                what is the same for all j cancels, so out_i is the base's attention with a term b_ij = q_i . R_j(a_i) in its
                scores, plus c_i. R_j turns by the position of j: b_ij depends on i and on the distance alone, and without
                RoPE it cancels too. b_ij = f_i . (cos_j, sin_j): the model's own cosines are remembered beside the keys.
multiplicative  K_ij = g_i k_j, V_ij = o_i v_j: other queries q_i g_i (g is the same for both halves of a rotation) and gated heads.
nonlinear       V_ij = v_j + W phi(c_i + e_j), of m hidden units per head: truly pairwise. Made for BLOCK queries at a time, and
                again in the backward pass: what is made for every pair stays in the processor's cache, and the future is
                mostly left out. e is remembered beside the keys.

a, c, log g, log o are low-rank maps of the layer's input, zero at first, and so is W: the untrained model is the base bit for bit
(linear: to the difference of two kernels).

Source: pierrot-lc/selective-attention, README and attention module.
Differs from the source:
1. The linear form is exact and takes O(n d) memory; there keys and values are [n, n, d] (`naive` below, to compare with), four
   times slower for the same function.
2. Scores are divided by sqrt(d); there, in the published runs, by the square root of the length.
3. The multiplicative and the nonlinear form are new; of the three, only the last is beyond what standard attention can do.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from svf_rl.attention.adapter import AttentionAdapter
from svf_rl.attention.host import BLOCK, Call, Patch, Site, rotate
from svf_rl.base.load import Base
from svf_rl.errors import UserError
from svf_rl.progress import Progress


class Form(StrEnum):
    """How queries make keys and values; see above."""

    linear = "linear"
    multiplicative = "multiplicative"
    nonlinear = "nonlinear"


@dataclass(frozen=True)
class SelectiveConfig:
    """rank: of the maps, per layer.  hidden: m, units per head of the nonlinear form."""

    name: str = "selective"
    form: Form = Form.multiplicative
    rank: int = 8
    hidden: int = 4

    def __post_init__(self) -> None:
        if self.rank < 1 or self.hidden < 1:
            raise UserError(f"adapter.rank and adapter.hidden must be at least 1; found {self}")


class LowRank(nn.Module):
    """x [B, T, width] -> [B, heads, T, d] through `rank` values; zero at first."""

    def __init__(self, site: Site, rank: int, width: int, part: int) -> None:
        super().__init__()
        self.heads = site.heads
        self.down = nn.Parameter(site.seeded(1 + part, rank, site.width)[-1] / math.sqrt(site.width))
        self.up = nn.Parameter(torch.zeros(site.heads * width, rank))

    def of(self, x: Float[Tensor, "B T width"]) -> Float[Tensor, "B heads T d"]:
        heads: Tensor = (x.float() @ self.down.T @ self.up.T).unflatten(-1, (self.heads, -1))
        return heads.transpose(1, 2)


class Linear(Patch):
    """K_ij = R_j(a_i) + k_j, V_ij = c_i + v_j. Without RoPE there is no a: it would cancel."""

    def __init__(self, site: Site, config: SelectiveConfig) -> None:
        super().__init__()
        self.key = LowRank(site, config.rank, site.rotary, 0) if site.rotary else None
        self.value = LowRank(site, config.rank, site.head_dim, 1)

    def features(self, call: Call) -> Float[Tensor, "B T n"] | None:
        if call.turn is None:
            return None
        halves = [part.chunk(2, -1)[0] for part in call.turn]
        return torch.cat(halves, -1).expand(len(call.hidden), -1, -1)

    def attend(self, call: Call) -> Float[Tensor, "B T H d"]:
        heads = call.attention() if self.key is None or call.features is None else call.in_pieces(self._biased)
        return heads + self.value.of(call.hidden).transpose(1, 2).to(heads.dtype)

    def _biased(self, call: Call) -> Float[Tensor, "B T H d"]:
        assert self.key is not None
        assert call.features is not None
        cos, sin = call.features.float()[:, None].chunk(2, -1)
        bias = key_bias(call.query.float(), self.key.of(call.hidden), cos, sin) * call.options["scaling"]
        if call.looking:
            call.masks = bias.exp()
        return call.attention(bias=bias)


class Multiplicative(Patch):
    """K_ij = g_i k_j, V_ij = o_i v_j, with g and o between 0 and 2."""

    def __init__(self, site: Site, config: SelectiveConfig) -> None:
        super().__init__()
        self.rotary = site.rotary
        self.key = LowRank(site, config.rank, site.head_dim - site.rotary // 2, 0)
        self.value = LowRank(site, config.rank, site.head_dim, 1)

    def attend(self, call: Call) -> Float[Tensor, "B T H d"]:
        half, still = (2 * self.key.of(call.hidden).sigmoid()).tensor_split([self.rotary // 2], -1)
        query = call.query * torch.cat([half, half, still], -1).to(call.query.dtype)
        heads, gates = call.attention(query), 2 * self.value.of(call.hidden).sigmoid().transpose(1, 2)
        call.gates = gates.flatten(2)
        if torch.is_grad_enabled():
            self.figures["gate_mean"] = call.mean(call.gates).mean().detach()
        return heads * gates.to(heads.dtype)


class Nonlinear(Patch):
    """V_ij = v_j + W phi(c_i + e_j)."""

    def __init__(self, site: Site, config: SelectiveConfig) -> None:
        super().__init__()
        self.heads, inner = site.heads, site.heads * config.hidden
        self.query = nn.Parameter(site.seeded(1, inner, site.width)[-1] / math.sqrt(site.width))
        self.key = nn.Parameter(site.seeded(2, inner, site.width)[-1] / math.sqrt(site.width))
        self.out = nn.Parameter(torch.zeros(site.heads, config.hidden, site.head_dim))

    def features(self, call: Call) -> Float[Tensor, "B T n"]:
        return call.hidden.float() @ self.key.T

    def attend(self, call: Call) -> Float[Tensor, "B T H d"]:
        heads = call.attention()
        return heads + call.in_pieces(self._pairs).to(heads.dtype)

    def _pairs(self, call: Call) -> Float[Tensor, "B T H d"]:
        """sum over j of a_ij W phi(c_i + e_j)."""
        assert call.features is not None
        query, key = (
            side.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for side in (call.hidden.float() @ self.query.T, call.features.float())
        )
        hidden: Tensor = Pairwise.apply(call.weights(), query, key)
        return (hidden @ self.out).transpose(1, 2)


def key_bias(
    query: Float[Tensor, "B H T d"],
    own: Float[Tensor, "B H T rotary"],
    cos: Float[Tensor, "rows 1 S half"],
    sin: Float[Tensor, "rows 1 S half"],
) -> Float[Tensor, "B H T S"]:
    """q_i . R_j(a_i) for all pairs, from one vector of each query and one of each key."""
    first, second = own.chunk(2, -1)
    q1, q2 = query[..., : own.shape[-1]].chunk(2, -1)
    return torch.cat([q1 * first + q2 * second, q2 * first - q1 * second], -1) @ torch.cat([cos, sin], -1).transpose(2, 3)


class Pairwise(torch.autograd.Function):
    """sum over j of weights_ij phi(query_i + key_j), and its gradients.

    weights [B, H, T, S], query [B, H, T, m], key [B, H, S, m]; the last query sees at most the last key, the one before it at most
    the one before that: beyond it weights are not read, and have a gradient of 0.
    """

    @staticmethod
    def forward(ctx: Any, weights: Tensor, query: Tensor, key: Tensor) -> Tensor:
        ctx.save_for_backward(weights, query, key)
        out, flat = torch.empty_like(query), key.transpose(2, 3).contiguous()
        for now, seen in _blocks(weights):
            hidden = F.gelu(query[:, :, now, :, None] + flat[:, :, None, :, seen])
            out[:, :, now] = hidden.mul_(weights[:, :, now, None, seen]).sum(-1)
        return out

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        weights, query, key = ctx.saved_tensors
        flat = key.transpose(2, 3).contiguous()
        to_weights, to_query, to_flat = torch.zeros_like(weights), torch.empty_like(query), torch.zeros_like(flat)
        for now, seen in _blocks(weights):
            inner, above = query[:, :, now, :, None] + flat[:, :, None, :, seen], grad[:, :, now, :, None]
            to_weights[:, :, now, seen] = F.gelu(inner).mul_(above).sum(-2)
            slope = torch.ops.aten.gelu_backward(above * weights[:, :, now, None, seen], inner)
            to_query[:, :, now] = slope.sum(-1)
            to_flat[..., seen] += slope.sum(2)
        return to_weights, to_query, to_flat.transpose(2, 3)


def _blocks(weights: Float[Tensor, "B H T S"]) -> Iterator[tuple[slice, slice]]:
    """Some queries, and the keys that they see."""
    time, keys = weights.shape[2:]
    for i in range(0, time, BLOCK):
        yield slice(i, i + BLOCK), slice(0, keys - time + i + BLOCK)


def fast(
    query: Float[Tensor, "B H T d"],
    key: Float[Tensor, "B H S d"],
    value: Float[Tensor, "B H S d"],
    own_key: Float[Tensor, "B H T d"],
    own_value: Float[Tensor, "B H T d"],
    turn: tuple[Tensor, Tensor] | None,
    visible: Bool[Tensor, "T S"],
) -> Float[Tensor, "B H T d"]:
    """The linear form: attention with a bias, plus c_i. query and key are turned already; turn: that of the keys, [B, S, d]."""
    bias = torch.zeros((), dtype=query.dtype, device=query.device)
    if turn is not None:
        cos, sin = (part[:, None].chunk(2, -1)[0] for part in turn)
        bias = key_bias(query, own_key, cos, sin) / math.sqrt(query.shape[-1])
    return F.scaled_dot_product_attention(query, key, value, bias.masked_fill(~visible, -torch.inf)) + own_value


def naive(
    query: Float[Tensor, "B H T d"],
    key: Float[Tensor, "B H S d"],
    value: Float[Tensor, "B H S d"],
    own_key: Float[Tensor, "B H T d"],
    own_value: Float[Tensor, "B H T d"],
    turn: tuple[Tensor, Tensor] | None,
    visible: Bool[Tensor, "T S"],
) -> Float[Tensor, "B H T d"]:
    """The same as it is defined, with the keys and values of all pairs [B, H, T, S, d]."""
    pairs = own_key[:, :, :, None].expand(-1, -1, -1, key.shape[2], -1)
    if turn is not None:
        pairs = rotate(pairs.flatten(1, 2), turn).unflatten(1, pairs.shape[1:3])
    keys, values = pairs + key[:, :, None], own_value[:, :, :, None] + value[:, :, None]
    scores = (keys @ query[..., None])[..., 0] / math.sqrt(query.shape[-1])
    weights = scores.masked_fill(~visible, -torch.inf).softmax(-1)
    return (weights[..., None, :] @ values)[..., 0, :]


def make_selective(base: Base, config: SelectiveConfig, progress: Progress) -> AttentionAdapter:
    """Selective attention at every layer, not yet installed. BaseError where this base cannot have it."""
    forms: dict[str, Callable[[Site], Patch]] = {
        Form.linear: lambda site: Linear(site, config),
        Form.multiplicative: lambda site: Multiplicative(site, config),
        Form.nonlinear: lambda site: Nonlinear(site, config),
    }
    return AttentionAdapter(base.model, config, forms[config.form])
