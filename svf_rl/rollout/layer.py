"""One decoder layer, read out of the library's modules for sampling, with the keys and values it remembers.

q, k and v are one product, gate and up another. Keys lie as [rows kv, width, time] and values as [rows kv, time, width]: both
products of one token's attention then read memory in order. The two halves of a head that are rotated against each other are
interleaved when the weights are read: the rotation is then one complex product, and q·k does not change.

A linear layer that is adapted is asked for its weight by `dense()`; a module that has no such method, or answers None, is called.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

PACKED = 1 << 21  # numbers in a matrix: smaller ones are copied side by side, larger ones are read where they are
STEP = 16  # by how many positions a block grows


class Layer:
    """x + attention(norm x), then x + mlp(norm x); `window` is how many of the last positions it sees, None for all."""

    def __init__(self, module: nn.Module, config: Any, window: int | None, rotated: int) -> None:
        attention, mlp = children(module, "self_attn attn")[0], children(module, "mlp")[0]
        heads = config.num_attention_heads
        self.heads, self.kv = heads, getattr(config, "num_key_value_heads", None) or heads
        self.width = getattr(config, "head_dim", None) or config.hidden_size // heads
        self.scale, self.window, self.rotated = attention.scaling, window, rotated
        order = interleaved(self.width, rotated)
        self.before, self.between = map(norm, children(module, "input_layernorm ln_1 post_attention_layernorm ln_2"))
        self.qkv = Product(children(attention, "q_proj k_proj v_proj qkv_proj c_attn"), self._rows(order))
        self.qk_norms = [norm(n, order) for n in children(attention, "q_norm k_norm")]
        self.out = Product(children(attention, "o_proj c_proj"))
        self.up = Product(children(mlp, "gate_proj up_proj gate_up_proj c_fc"))
        self.down = Product(children(mlp, "down_proj c_proj"))
        self.act, self.gated = children(mlp, "act_fn activation_fn act")[0], not hasattr(mlp, "c_fc")

    def _rows(self, order: Int[Tensor, " width"]) -> Int[Tensor, " out"] | None:
        """Where each output of q, k and v comes from; v keeps its order, and so does everything if nothing is rotated."""
        if not self.rotated:
            return None
        turned = [order + head * self.width for head in range(self.heads + self.kv)]
        return torch.cat([*turned, torch.arange((self.heads + self.kv) * self.width, (self.heads + 2 * self.kv) * self.width)])

    def start(self, rows: int, **how: Any) -> None:
        """Forget everything, and be ready for so many rows. how: dtype and device."""
        self.keys = torch.zeros(rows * self.kv, self.width, 0, **how)
        self.values = torch.zeros(rows * self.kv, 0, self.width, **how)

    def reserve(self, time: int) -> None:
        missing = time - self.keys.shape[-1]
        if missing > 0:
            more = -(-missing // STEP) * STEP
            self.keys, self.values = F.pad(self.keys, (0, more)), F.pad(self.values, (0, 0, 0, more))

    def keep(self, rows: Int[Tensor, " kept"]) -> None:
        self.keys = self.keys.unflatten(0, (-1, self.kv)).index_select(0, rows).flatten(0, 1)
        self.values = self.values.unflatten(0, (-1, self.kv)).index_select(0, rows).flatten(0, 1)

    def project(self, x: Float[Tensor, "n time width"], turns: Complex[Tensor, "n time 1 half"] | None) -> list[Tensor]:
        """q, k and v of the normed input, each [n, time, heads, width of a head], q and k rotated."""
        y = self.qkv(self.before(x)).unflatten(-1, (-1, self.width))
        q, k, v = y.split([self.heads, self.kv, self.kv], 2)
        if self.qk_norms:
            q, k = (n(part) for n, part in zip(self.qk_norms, (q, k), strict=True))
        if turns is None:
            return [q, k, v]
        if self.qk_norms:
            return [rotate(q, turns), rotate(k, turns), v]
        return [*rotate(y[:, :, : self.heads + self.kv], turns).split([self.heads, self.kv], 2), v]

    def mlp(self, x: Float[Tensor, "n time width"]) -> Float[Tensor, "n time width"]:
        y = self.up(self.between(x))
        if not self.gated:
            return self.down(self.act(y))
        gate, up = y.chunk(2, -1)
        return self.down(self.act(gate).mul_(up))

    def attend_prompts(
        self, q: Tensor, k: Tensor, v: Tensor, slots: Int[Tensor, " new"], copies: Int[Tensor, " new"]
    ) -> Float[Tensor, "n time all_heads"]:
        """Every token sees those before it in its own prompt; row slots[i] remembers prompt copies[i]."""
        time = k.shape[1]
        self.reserve(time)
        keys, values = self.keys.unflatten(0, (-1, self.kv)), self.values.unflatten(0, (-1, self.kv))
        keys[..., :time].index_copy_(0, slots, k.permute(0, 2, 3, 1)[copies])
        values[:, :, :time].index_copy_(0, slots, v.transpose(1, 2)[copies])
        near = None
        if self.window is not None and self.window < time:
            near = torch.ones(time, time, dtype=torch.bool, device=q.device).tril().triu(1 - self.window)
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        y = F.scaled_dot_product_attention(
            q, k, v, attn_mask=near, is_causal=near is None, scale=self.scale, enable_gqa=self.kv < self.heads
        )
        return y.transpose(1, 2).flatten(2)

    def attend_block(
        self, q: Tensor, k: Tensor, v: Tensor, positions: Int[Tensor, " rows"], mask: Float[Tensor, "rows_kv 1 time"]
    ) -> Float[Tensor, "rows 1 all_heads"]:
        """The one token of every row sees what its row remembers, itself included, where the mask is zero."""
        rows, time = torch.arange(len(q), device=q.device), mask.shape[-1]
        self.reserve(time)
        self.keys.unflatten(0, (-1, self.kv))[rows, :, :, positions] = k[:, 0]
        self.values.unflatten(0, (-1, self.kv))[rows, :, positions] = v[:, 0]
        q = q.reshape(len(rows) * self.kv, -1, self.width)
        scores = torch.baddbmm(mask, q, self.keys[:, :, :time], alpha=self.scale)
        return torch.bmm(torch.softmax(scores, -1), self.values[:, :time]).view(len(rows), 1, -1)


class Product:
    """Linear layers that share their input, side by side; `order` permutes the outputs."""

    def __init__(self, modules: Sequence[nn.Module], order: Tensor | None = None) -> None:
        known = [dense(module) for module in modules]
        self.parts: list[Callable[[Tensor], Tensor]] = [
            module if own is None else partial(F.linear, weight=own[0], bias=own[1])
            for module, own in zip(modules, known, strict=True)
        ]
        self.order = order
        weights = [own for own in known if own is not None]
        if len(weights) == len(known) and sum(weight.numel() for weight, _ in weights) <= PACKED:
            self.parts, self.order = [pack(weights, order)], None

    def __call__(self, x: Float[Tensor, "n time in"]) -> Float[Tensor, "n time out"]:
        y = self.parts[0](x) if len(self.parts) == 1 else torch.cat([part(x) for part in self.parts], -1)
        return y if self.order is None else y[..., self.order]


def pack(weights: Sequence[tuple[Tensor, Tensor | None]], order: Tensor | None) -> Callable[[Tensor], Tensor]:
    """One product with a copy [in, out] of the weights [out, in]: small matrices multiply faster that way."""
    weight = torch.cat([w for w, _ in weights])
    biases = [w.new_zeros(len(w)) if b is None else b for w, b in weights]
    bias = torch.cat(biases) if any(b is not None for _, b in weights) else None
    if order is not None:
        weight, bias = weight[order], None if bias is None else bias[order]
    across = weight.T.contiguous()

    def product(x: Tensor) -> Tensor:
        flat = x.flatten(0, -2)
        y = flat @ across if bias is None else torch.addmm(bias, flat, across)
        return y.view(*x.shape[:-1], -1)

    return product


def dense(module: nn.Module) -> tuple[Float[Tensor, "out in"], Float[Tensor, " out"] | None] | None:
    """Weight and bias of a linear layer as it acts now; None for a module that has to be called."""
    if hasattr(module, "dense"):
        return module.dense()  # type: ignore[no-any-return, operator]
    if not is_plain(module) or not isinstance(module, nn.Linear | Conv1D):
        return None
    return module.weight.T if isinstance(module, Conv1D) else module.weight, module.bias


def is_plain(module: nn.Module) -> bool:
    """Whether it is the library's or torch's own, with nothing hooked into it."""
    hooks = (module._forward_hooks, module._forward_pre_hooks)
    return type(module).__module__.startswith(("transformers.", "torch.")) and not any(hooks) and "forward" not in vars(module)


def norm(module: Any, order: Tensor | None = None) -> Callable[[Tensor], Tensor]:
    """A layer norm, or a root-mean-square norm, whose weight Gemma stores less one."""
    if isinstance(module, nn.LayerNorm):
        return module
    weight, epsilon = module.weight, getattr(module, "variance_epsilon", None) or module.eps
    if type(module).__name__ == "GemmaRMSNorm":
        weight = 1.0 + weight
    weight = weight if order is None else weight[order]
    return lambda x: F.rms_norm(x, weight.shape, weight, epsilon)


def interleaved(width: int, rotated: int) -> Int[Tensor, " width"]:
    """The order of a head's numbers that puts i and i + rotated / 2, which are rotated against each other, side by side."""
    return torch.cat([torch.arange(rotated).view(2, -1).T.flatten(), torch.arange(rotated, width)])


def rotate(x: Float[Tensor, "n time heads width"], turns: Complex[Tensor, "n time 1 half"]) -> Float[Tensor, "n time heads width"]:
    """Rotate in place the first numbers of every head, as pairs."""
    part = x[..., : 2 * turns.shape[-1]]
    pairs = torch.view_as_complex(part.to(turns.real.dtype).unflatten(-1, (-1, 2)))
    part.copy_(torch.view_as_real(pairs * turns).flatten(-2))
    return x


def children(module: nn.Module, names: str) -> list[Any]:
    """Its children among these names, in this order."""
    return [getattr(module, name) for name in names.split() if hasattr(module, name)]
