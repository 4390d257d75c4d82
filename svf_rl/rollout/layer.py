"""One decoder layer, read out of the library's modules for sampling, with the keys and values it remembers.

q, k and v are one product, gate and up another. The two halves of a head that are rotated against each other are interleaved when
the weights are read: the rotation is then one complex product, and q·k does not change.

Keys and values lie in one block [2, rows, kv, slots, width]. All rows end at the same slot, so the next token of every row goes to
one slot, by one copy. A shorter row begins at a later slot; what lies before is masked.

A linear layer that is adapted is asked for its weight by `dense()` or, where every row has its own, for its factors by `mixed()`; a
module that has no such method, or answers None, is called.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

PACKED = 1 << 21  # numbers in a matrix: smaller ones are copied side by side, larger ones are read where they are


class New(NamedTuple):
    """Prompts that are to be remembered: row slots[i] takes prompt copies[i], its tokens in this order, up to the slot `end`."""

    slots: Int[Tensor, " new"]
    copies: Int[Tensor, " new"]
    order: Int[Tensor, "new time"]
    end: int


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
        self.memory = torch.zeros(2, rows, self.kv, 0, self.width, **how)

    def move(self, seen: slice, front: int, behind: int) -> None:
        """Keep what lies in the slots `seen`, with so many empty ones in front of it and behind it."""
        self.memory = F.pad(self.memory[:, :, :, seen], (0, 0, front, behind))

    def keep(self, rows: Int[Tensor, " kept"]) -> None:
        """Only those that change their place are copied."""
        moved = (rows != torch.arange(len(rows), device=rows.device)).nonzero()[:, 0]
        self.memory[:, moved] = self.memory[:, rows[moved]]
        self.memory = self.memory[:, : len(rows)]

    def project(
        self, x: Float[Tensor, "n time width"], turns: Complex[Tensor, "n time 1 half"] | None
    ) -> tuple[Float[Tensor, "n time heads head"], Float[Tensor, "n time 2 kv head"]]:
        """Queries, and keys and values, of the normed input; queries and keys rotated."""
        y = self.qkv(self.before(x)).unflatten(-1, (-1, self.width))
        q, k, _ = y.split([self.heads, self.kv, self.kv], 2)
        for norm, part in zip(self.qk_norms, (q, k), strict=False):
            part.copy_(norm(part))
        if turns is not None:
            rotate(y[:, :, : self.heads + self.kv], turns)
        return q, y[:, :, self.heads :].unflatten(2, (2, self.kv))

    def mlp(self, x: Float[Tensor, "n time width"]) -> Float[Tensor, "n time width"]:
        y = self.up(self.between(x))
        if not self.gated:
            return self.down(self.act(y))
        gate, up = y.chunk(2, -1)
        return self.down(self.act(gate).mul_(up))

    def attend_prompts(
        self, q: Float[Tensor, "n time heads head"], kv: Float[Tensor, "n time 2 kv head"], new: New
    ) -> Float[Tensor, "n time all_heads"]:
        """Every token sees those before it in its own prompt, which is then remembered."""
        time, near = q.shape[1], None
        taken = kv[new.copies[:, None], new.order].permute(2, 0, 3, 1, 4)
        self.memory[:, :, :, new.end - time : new.end].index_copy_(1, new.slots, taken)
        if self.window is not None and self.window < time:
            near = torch.ones(time, time, dtype=torch.bool, device=q.device).tril().triu(1 - self.window)
        q, k, v = (part.transpose(1, 2) for part in (q, *kv.unbind(2)))
        y = F.scaled_dot_product_attention(
            q, k, v, attn_mask=near, is_causal=near is None, scale=self.scale, enable_gqa=self.kv < self.heads
        )
        return y.transpose(1, 2).flatten(2)

    def attend_block(
        self,
        q: Float[Tensor, "rows 1 heads head"],
        kv: Float[Tensor, "rows 1 2 kv head"],
        mask: Float[Tensor, "rows kv seen"],
        end: int,
    ) -> Float[Tensor, "rows 1 all_heads"]:
        """The one token of every row goes to the last slot before `end`, and sees the slots up to there where the mask is zero."""
        mask = mask if self.window is None else mask[..., -self.window :]
        self.memory[:, :, :, end - 1] = kv[:, 0].transpose(0, 1)
        keys, values = self.memory[:, :, :, end - mask.shape[-1] : end].flatten(1, 2)
        q = q.reshape(len(keys), -1, self.width)
        scores = torch.baddbmm(mask.flatten(0, 1)[:, None], q, keys.mT, alpha=self.scale)
        return torch.bmm(torch.softmax(scores, -1), values).view(len(mask), 1, -1)


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
        factors = [mixed(module) for module in modules]
        if all(f is not None and f[3] is None and f[0].numel() <= PACKED for f in factors):
            self.parts, self.order = [pack_mixed(modules, factors, order)], None

    def __call__(self, x: Float[Tensor, "n time in"]) -> Float[Tensor, "n time out"]:
        y = self.parts[0](x) if len(self.parts) == 1 else torch.cat([part(x) for part in self.parts], -1)
        return y if self.order is None else y[..., self.order]


def pack(weights: Sequence[tuple[Tensor, Tensor | None]], order: Tensor | None) -> Callable[[Tensor], Tensor]:
    """One product with a copy [in, out] of the weights [out, in]: small matrices multiply faster that way."""
    weight = torch.cat([w for w, _ in weights])
    bias = pack_bias([w for w, _ in weights], [b for _, b in weights], order)
    across = (weight if order is None else weight[order]).T.contiguous()

    def product(x: Tensor) -> Tensor:
        flat = x.flatten(0, -2)
        y = flat @ across if bias is None else torch.addmm(bias, flat, across)
        return y.view(*x.shape[:-1], -1)

    return product


def pack_mixed(modules: Sequence[Any], factors: Sequence[Any], order: Tensor | None) -> Callable[[Tensor], Tensor]:
    """U (rows * Vt x) of several layers, with copies of U and Vt laid out for it: one product with all Vt, one with each U."""
    down = torch.cat([vt for _, vt, *_ in factors]).T.contiguous()
    outs, ranks = ([part.shape[i] for part, *_ in factors] for i in (0, 1))
    shifts = [None] * len(outs) if order is None else [o - sum(outs[:i]) for i, o in enumerate(order.split(outs))]
    ups = [(u if shift is None else u[shift]).T.contiguous() for (u, *_), shift in zip(factors, shifts, strict=True)]
    bias = pack_bias([f[0] for f in factors], [f[2] for f in factors], order)

    def product(x: Tensor) -> Tensor:
        scale = torch.cat([module.rows for module in modules], -1)
        inner = (x.flatten(0, -2) @ down).view(len(scale), -1, down.shape[1]) * scale[:, None]
        y = torch.cat([part @ up for part, up in zip(inner.flatten(0, 1).split(ranks, -1), ups, strict=True)], -1)
        return (y if bias is None else y + bias).view(*x.shape[:-1], -1)

    return product


def pack_bias(weights: Sequence[Tensor], biases: Sequence[Tensor | None], order: Tensor | None) -> Tensor | None:
    """The biases side by side, zeros where there is none; None if none has one."""
    if all(bias is None for bias in biases):
        return None
    together = torch.cat([w.new_zeros(len(w)) if b is None else b for w, b in zip(weights, biases, strict=True)])
    return together if order is None else together[order]


def dense(module: nn.Module) -> tuple[Float[Tensor, "out in"], Float[Tensor, " out"] | None] | None:
    """Weight and bias of a linear layer as it acts now; None for a module that has to be called."""
    if hasattr(module, "dense"):
        return module.dense()  # type: ignore[no-any-return, operator]
    if not is_plain(module) or not isinstance(module, nn.Linear | Conv1D):
        return None
    return module.weight.T if isinstance(module, Conv1D) else module.weight, module.bias


def mixed(module: Any) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None] | None:
    """Factors U [out, r] and Vt [r, in], bias, and the weight they add to if any, where every row has its own scale; else None."""
    return module.mixed() if hasattr(module, "mixed") else None


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


def rotate(x: Float[Tensor, "n time heads width"], turns: Complex[Tensor, "n time 1 half"]) -> None:
    """Rotate in place the first numbers of every head, as pairs."""
    part = x[..., : 2 * turns.shape[-1]]
    precise = part.to(turns.real.dtype)
    torch.view_as_complex(precise.unflatten(-1, (-1, 2))).mul_(turns)
    if precise is not part:
        part.copy_(precise)


def children(module: nn.Module, names: str) -> list[Any]:
    """Its children among these names, in this order."""
    return [getattr(module, name) for name in names.split() if hasattr(module, name)]
