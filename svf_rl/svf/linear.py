"""A linear layer whose singular values are scaled: y = W'(z) x with W'(z) = U diag(s z) Vt, in three exact forms.

merged     x W'ᵀ with W' = W + U diag(s (z - 1)) Vt built once for each value of z: no cost at run time, one z for all rows.
           Layers of one shape are merged in one batched product.
factored   U ((s z_b) * (Vt x_b)): a different z in every row of the batch.
residual   W x_b + U ((s (z_b - 1)) * (Vt x_b)): the same, and exactly W x_b where z_b = 1. Needed when the factors are
           truncated, or when a row of the batch is the base itself.

At z = 1 the merged and residual forms add an exact zero, so they equal the base bit for bit. The gradient of the merged form is

    dL/dz_i = s_i u_iᵀ G v_i,   G = dL/dW' = sum over tokens of dy_t x_tᵀ

computed matrix by matrix, either by forming G once or token by token, whichever takes fewer operations. No gradient the size of the
model is ever held.

Source: Transformer-Squared, section 3.1.
Differs from the source (SakanaAI/self-adaptive-llms): it rebuilds W' through diag_embed and keeps a dense gradient of every weight.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from svf_rl.svf.factorize import matrix
from svf_rl.types import Factors

TOGETHER = 1 << 21  # numbers: matrices of one shape are merged together up to so many; larger ones keep all cores busy alone


class SVFLinear(nn.Module):
    """Stands in for a linear layer of the base, which it holds and never changes.

    scale: returns the current z [r]; its `version` changes whenever z does.  rows: what scales Vt x in a mixed batch [batch, r],
    s z or, in the residual form, s (z - 1); or None.
    """

    base: Any  # nn.Linear or Conv1D
    U: Tensor
    s: Tensor
    Vt: Tensor

    def __init__(self, base: nn.Module, factors: Factors, scale: Callable[[], Tensor], version: Callable[[], int]) -> None:
        super().__init__()
        self.base, self._scale, self._z_version = base, scale, version
        self.register_buffer("U", factors.U, persistent=False)
        self.register_buffer("s", factors.s, persistent=False)
        self.register_buffer("Vt", factors.Vt, persistent=False)
        self.truncated = len(factors.s) < min(matrix(base).shape)
        self.rows: Tensor | None = None
        self.residual = False
        self.bypass = False
        self._merged: Tensor | None = None
        self._merged_for: tuple[int, Tensor] = (-1, factors.s)
        self._had_backward = False
        self.stack = Stack([self])

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        if self.bypass:
            return cast(Tensor, self.base(x))
        if self.rows is not None:
            return self._mixed(x, self.rows)
        z = self._scale()
        if torch.is_grad_enabled() and z.requires_grad:
            return cast(Tensor, _MergedProduct.apply(x, z, self))
        return self.product(x, self.merged(z))

    def merged(self, z: Float[Tensor, " r"]) -> Tensor:
        """W'(z) in the layout and type of the base's weight; rebuilt from the frozen factors when z has changed."""
        if self._merged is None or self._is_stale(z):
            self.stack.merge()
        self._had_backward = False
        return cast(Tensor, self._merged)

    def take(self, weight: Float[Tensor, "out in"] | None, z: Float[Tensor, " r"]) -> None:
        """Act with this weight until z changes; None forgets the one there was."""
        self._merged = weight.T.contiguous() if weight is not None and isinstance(self.base, Conv1D) else weight
        self._merged_for = (self._z_version(), z)

    def dense(self) -> tuple[Float[Tensor, "out in"], Float[Tensor, " out"] | None] | None:
        """The weight and bias it acts with now; None if every row has its own."""
        if self.rows is not None and not self.bypass:
            return None
        if self.bypass:
            return matrix(self.base), self.base.bias
        weight = self.merged(self._scale())
        return weight.T if isinstance(self.base, Conv1D) else weight, self.base.bias

    def mixed(self) -> tuple[Float[Tensor, "out r"], Float[Tensor, "r in"], Float[Tensor, " out"] | None, Tensor | None] | None:
        """U, Vt and bias where every row has its own `rows`, and the base's weight [out, in] where they add to it; else None."""
        if self.rows is None or self.bypass:
            return None
        return self.U, self.Vt, self.base.bias, matrix(self.base) if self.residual else None

    def _is_stale(self, z: Float[Tensor, " r"]) -> bool:
        """In-place operations count z's version up, fused optimisers do not: after a backward pass the values are compared."""
        version, values = self._merged_for
        return version != self._z_version() or (self._had_backward and not torch.equal(values, z))

    def product(self, x: Tensor, weight: Tensor) -> Tensor:
        """The base's own operation with another weight: the same kernel, so the same bits for the same weight."""
        if isinstance(self.base, Conv1D):
            flat = torch.addmm(self.base.bias, x.reshape(-1, x.shape[-1]), weight)
            return flat.view(*x.shape[:-1], -1)
        return F.linear(x, weight, self.base.bias)

    def table(self, z: Float[Tensor, "k r"]) -> tuple[Float[Tensor, "k r"], bool]:
        """Of several z: what `rows` is to hold of each, and whether that is the residual form."""
        residual = self.truncated or bool((z == 1).all(-1).any())
        return self.s * (z - 1 if residual else z), residual

    def _mixed(self, x: Tensor, rows: Float[Tensor, "batch r"]) -> Tensor:
        if len(rows) != len(x):
            raise ValueError(f"{len(rows)} experts for a batch of {len(x)} rows; every row needs its own")
        scale = rows.view(len(rows), *[1] * (x.ndim - 2), -1)  # one per row, the same for every token
        y = F.linear(F.linear(x.float(), self.Vt) * scale, self.U)
        if self.residual:
            return cast(Tensor, self.base(x)) + y.to(x.dtype)
        return (y if self.base.bias is None else y + self.base.bias).to(x.dtype)


class Stack:
    """Layers of one shape, merged in one batched product: many small ones take less time so than one after another.

    Their factors become slices of one tensor, U [n, out, r], s [n, r], Vt [n, r, in]: a second copy of them only where the caller
    keeps the first. While it merges, the smaller of U and Vt is there once more.
    """

    def __init__(self, layers: Sequence[SVFLinear]) -> None:
        self.layers = layers
        self.U, self.s, self.Vt = (_side_by_side(layers, part) for part in Factors._fields)
        for layer in layers:
            layer.stack = self

    @torch.no_grad()
    def merge(self) -> None:
        """W + U diag(s (z - 1)) Vt of all of them, each with its z of now."""
        z = torch.stack([layer._scale() for layer in self.layers])
        for layer, value in zip(self.layers, z, strict=True):
            layer.take(None, value)  # before there are new ones
        weights = torch.stack([matrix(layer.base) for layer in self.layers])
        merged = weights.float().baddbmm_(*self._scaled(self.s * (z - 1))).to(weights.dtype)
        for layer, weight, value in zip(self.layers, merged, z, strict=True):
            layer.take(weight, value)

    def _scaled(self, by: Float[Tensor, "n r"]) -> tuple[Float[Tensor, "n out r"], Float[Tensor, "n r in"]]:
        """U and Vt, the smaller of them scaled."""
        if self.U.numel() < self.Vt.numel():
            return self.U * by[:, None], self.Vt
        return self.U, by[:, :, None] * self.Vt


def _side_by_side(layers: Sequence[SVFLinear], part: str) -> Float[Tensor, "n *shape"]:
    """A factor of all layers, who then hold slices of it."""
    parts = [getattr(layer, part) for layer in layers]
    if len(parts) == 1:
        return cast(Tensor, parts[0][None])
    whole = torch.stack(parts)
    for layer, own in zip(layers, whole, strict=True):
        setattr(layer, part, own)
    return whole


def stack_alike(layers: Iterable[SVFLinear]) -> None:
    """Put layers of one shape and kind together, up to TOGETHER numbers."""
    alike: dict[Any, list[SVFLinear]] = defaultdict(list)
    for layer in layers:
        weight = layer.base.weight
        alike[weight.shape, type(layer.base), len(layer.s), weight.dtype, weight.device].append(layer)
    for kind, members in alike.items():
        most = max(1, TOGETHER // kind[0].numel())
        for i in range(0, len(members), most):
            Stack(members[i : i + most])


class _MergedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, z: Tensor, layer: SVFLinear) -> Tensor:
        weight = layer.merged(z)
        ctx.save_for_backward(weight, layer.U, layer.s, layer.Vt, *_kept(x))
        ctx.layer = layer
        return layer.product(x, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor, None]:
        weight, u, s, vt, *kept = ctx.saved_tensors
        x = kept[0] if len(kept) == 1 else kept[0] * kept[1]
        ctx.layer._had_backward = True
        dy = grads[0].reshape(-1, u.shape[0])
        across = weight.T if isinstance(ctx.layer.base, Conv1D) else weight
        dx = (dy @ across).view_as(x) if ctx.needs_input_grad[0] else None
        return dx, s * _project(dy.float(), x.reshape(-1, x.shape[-1]).float(), u, vt), None


def _kept(x: Tensor) -> tuple[Tensor, ...]:
    """What the backward pass needs to have x again: the two factors of a product where autograd keeps them anyway, else x itself.

    Such is the input of a gated feed-forward part's last matrix, a quarter of what the part keeps.
    """
    if type(x.grad_fn).__name__ == "MulBackward0":
        a, b = x.grad_fn._saved_self, x.grad_fn._saved_other  # type: ignore[union-attr]
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            return a, b
    return (x,)


def _project(
    dy: Float[Tensor, "tokens out"], x: Float[Tensor, "tokens in"], u: Float[Tensor, "out r"], vt: Float[Tensor, "r in"]
) -> Float[Tensor, " r"]:
    """u_iᵀ (sum_t dy_t x_tᵀ) v_i for every i, the cheaper of two ways."""
    (tokens, out), (rank, inner) = dy.shape, vt.shape
    dense, per_token = out * inner * (tokens + rank), tokens * rank * (out + inner)
    if dense <= per_token:
        return ((u.T @ (dy.T @ x)) * vt).sum(1)
    return ((dy @ u) * (x @ vt.T)).sum(0)
