"""Attaching to the attention modules of a frozen decoder, whatever its architecture.

A `Host` takes the place of an attention module and lends it to a `Patch`. The module itself computes queries, keys and values, with
its own biases, norms and positions, and its own output projection; between the two, where the library looks up the attention
function by name, the call is handed to the patch. So a patch sees one `Call`, the same for Llama, Qwen, GPT-2 and the others:

    hidden --base--> q, k, v --patch--> heads --base--> output (+ what the patch adds after the projection)

Whatever a patch must remember of past tokens (`features`) is appended to their keys in the cache and taken off again when
they come back. Any cache that can hold keys can therefore hold them, and crops, reorders and repeats them along.

Source: huggingface/transformers modeling_utils.AttentionInterface (the named attention functions).
Differs from the source of peft's adaption_prompt, which recomputes queries from the projections it knows by name: no
architecture is named here, and one whose attention does not take this route is refused.
"""

import copy
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.pytorch_utils import Conv1D

from svf_rl.errors import BaseError

HANDED_OVER = "svf_rl"  # the library's name for the attention function that hands a call to its patch
BACKENDS = ("eager", "sdpa")
PAIRS = 1 << 18  # pairs of tokens, times heads, that are worked on at a time: a megabyte
BLOCK = 32  # queries that are worked on at a time


class Site(NamedTuple):
    """The sizes of one attention module. rotary: how many dimensions of a head turn with the position; 0 without RoPE."""

    width: int
    heads: int
    groups: int
    head_dim: int
    rotary: int
    layer: int
    out: Float[Tensor, "width heads*head_dim"]

    def seeded(self, *shape: int) -> Float[Tensor, "..."]:
        """Normal random numbers that depend on the layer alone."""
        generator = torch.Generator().manual_seed(self.layer)
        return torch.randn(*shape, generator=generator).to(self.out.device)


@dataclass
class Call:
    """One call of an attention module. B rows, T tokens, S keys (T and those of the cache), H heads, d dimensions of each.

    hidden [B, T, width]: the layer's normed input.  turn: cosine and sine of these tokens' positions, [B, T, rotary] each, or None.
    query [B, H, T, d], key and value [B, H / groups, S, d]: after positions and cache.  features [B, S, n]: as given by the patch.
    own [B, T, m]: what the patch makes of its tokens as it makes their features, and does not remember.
    after: what the patch adds to the module's output.  gates, masks: what it shows where `looking` (see AttentionAdapter.look).
    """

    hidden: Tensor
    turn: tuple[Tensor, Tensor] | None
    plain: Callable[..., tuple[Tensor, Tensor | None]]
    patch: "Patch | None"
    cache: Cache | None
    looking: bool = False
    query: Tensor = field(init=False)
    key: Tensor = field(init=False)
    value: Tensor = field(init=False)
    mask: Tensor | None = field(init=False)
    module: nn.Module = field(init=False)
    options: dict[str, Any] = field(init=False)
    features: Tensor | None = None
    own: Tensor | None = None
    after: Tensor | None = None
    gates: Tensor | None = None
    masks: Tensor | None = None

    def update(self, key: Tensor, value: Tensor, layer: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Stands in for the cache's: the true one waits until the patch has seen the queries."""
        self._rest = (layer, *args), kwargs
        return key, value

    def run(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any) -> Tensor:
        """Update the cache, then let the patch attend. Returns heads [B, T, H, d]."""
        self.module, self.options, self.mask = module, options, mask
        self.query, self.key, self.value = query, key, value
        assert self.patch is not None
        features = self.patch.features(self)
        self.features = None if features is None else features.to(key.dtype)
        if self.cache is not None:
            self._remember(self.cache)
        return self.patch.attend(self)

    def in_pieces(self, attend: "Callable[[Call], Float[Tensor, 'B T H d']]") -> Float[Tensor, "B T H d"]:
        """attend(self), some rows and some queries at a time, with the keys up to the last that these queries see.

        So the future is mostly not computed, and what is made for every pair of tokens stays in the processor's cache.
        Few pairs are one piece, for its own calls would cost more; so are all with a gradient, which keeps them anyway.
        """
        (rows, heads, time, _), keys = self.query.shape, self.key.shape[2]
        if torch.is_grad_enabled() or rows * heads * time * keys <= PAIRS:
            return attend(self)
        size = max(1, PAIRS // (heads * min(time, BLOCK) * keys))
        out = self.value.new_empty(rows, time, heads, self.value.shape[-1])
        for i in range(0, rows, size):
            for j in range(0, time, BLOCK):
                some = slice(i, i + size), slice(j, j + BLOCK)
                piece = self._piece(*some)
                out[some] = attend(piece)
                self._show(piece, *some)
        return out

    def _show(self, piece: "Call", rows: slice, queries: slice) -> None:
        """Put the piece's masks in their place; where the piece left keys out, they are 0."""
        if piece.masks is None:
            return
        if self.masks is None:
            self.masks = piece.masks.new_zeros(len(self.query), piece.masks.shape[1], self.query.shape[2], self.key.shape[2])
        self.masks[rows, :, queries, : piece.masks.shape[-1]] = piece.masks

    def _piece(self, rows: slice, queries: slice) -> "Call":
        """Some rows and queries: the call they would be as a chunk that comes through a cache. What all rows share stays shared."""

        def part(x: Tensor) -> Tensor:
            return x if len(x) == 1 else x[rows]

        slot = part(self.slot)[:, queries]
        end = int(slot.max()) + 1
        turn = None if self.turn is None else (part(self.turn[0])[:, queries], part(self.turn[1])[:, queries])
        piece = Call(self.hidden[rows, queries], turn, self.plain, self.patch, None, self.looking)
        piece.query, piece.key, piece.value = self.query[rows, :, queries], self.key[rows, :, :end], self.value[rows, :, :end]
        piece.features = None if self.features is None else part(self.features)[:, :end]
        piece.own = None if self.own is None else self.own[rows, queries]
        piece.slot, piece.visible = slot, part(self.visible)[:, queries, :end]
        piece.mask = piece.additive = part(self.additive)[:, :, queries, :end]
        piece.module, piece.options = self.module, self.options
        return piece

    def _remember(self, cache: Cache) -> None:
        args, kwargs = self._rest
        heads, width = self.key.shape[1], self.key.shape[-1]
        key = self.key
        if self.features is not None:
            n = self.features.shape[-1]
            padded = nn.functional.pad(self.features, (0, -n % heads))
            key = torch.cat([key, padded.unflatten(-1, (heads, -1)).transpose(1, 2)], -1)
        full, self.value = cache.update(key, self.value, *args, **kwargs)
        self.key = full[..., :width]
        if self.features is not None:
            self.features = full[..., width:].transpose(1, 2).flatten(2)[..., :n]

    @cached_property
    def visible(self) -> Bool[Tensor, "rows T S"]:
        """True where a query sees a key; one row where all are alike.

        Without a mask a single query sees all keys, and several are the first ones of the cache: what it has room for after them
        is empty (transformers' masking_utils leaves the mask out in these two cases only).
        """
        if self.mask is None:
            t, s = self.query.shape[2], self.key.shape[2]
            return torch.ones(1, t, s, dtype=torch.bool, device=self.query.device).tril(0 if t > 1 else s)
        return self.mask[:, 0] if self.mask.dtype == torch.bool else self.mask[:, 0] > torch.finfo(self.mask.dtype).min / 2

    @cached_property
    def slot(self) -> Int[Tensor, "rows T"]:
        """The index of each query's own key: the last one it sees. 0 for padding that sees none."""
        if self.mask is None:
            t, s = self.query.shape[2], self.key.shape[2]
            return torch.arange(t, device=self.key.device)[None] + (0 if t > 1 else s - 1)
        return self.visible.cumsum(-1).argmax(-1)

    @cached_property
    def real(self) -> Bool[Tensor, "rows T"]:
        """False for padding, whose queries do not even see themselves. For calls whose last T keys are the queries' own."""
        return self.visible.diagonal(self.key.shape[2] - self.query.shape[2], -2, -1)

    @cached_property
    def additive(self) -> Float[Tensor, "rows 1 T S"]:
        """The mask as a term of the scores: 0, or the least number."""
        if self.mask is not None and self.mask.dtype != torch.bool:
            return self.mask
        hidden = self.visible.logical_not()[:, None]
        return torch.zeros_like(hidden, dtype=self.query.dtype).masked_fill(hidden, torch.finfo(self.query.dtype).min)

    def attention(
        self,
        query: Tensor | None = None,
        key: Tensor | None = None,
        value: Tensor | None = None,
        bias: Float[Tensor, "rows heads T S"] | None = None,
    ) -> Tensor:
        """The base's own attention, with other queries, keys, values, or a term of the scores. Returns heads [B, T, H, d]."""
        mask = self.mask if bias is None else bias.to(self.query.dtype) + self.additive
        sides = (own if other is None else other for own, other in ((self.query, query), (self.key, key), (self.value, value)))
        heads: Tensor = self.plain(self.module, *sides, mask, **self.options)[0]
        return heads

    def scores(self) -> Float[Tensor, "B H T S"]:
        """q k / sqrt(d) in float32, without the mask."""
        query: Tensor = self.query.float() * self.options["scaling"]
        return query @ self.per_head(self.key).float().transpose(2, 3)

    def weights(self) -> Float[Tensor, "B H T S"]:
        """softmax(scores + mask) in float32."""
        return self.scores().add_(self.additive.float()).softmax(-1)

    def weighted(self, weights: Float[Tensor, "B H T S"]) -> Float[Tensor, "B T H d"]:
        """The heads that these weights make: weights v."""
        heads = weights.to(self.value.dtype) @ self.per_head(self.value)
        return heads.transpose(1, 2)

    def per_head(self, shared: Float[Tensor, "B kv S d"]) -> Float[Tensor, "B H S d"]:
        """Keys or values of grouped heads, repeated for each query head."""
        groups = self.query.shape[1] // shared.shape[1]
        return shared if groups == 1 else shared.repeat_interleave(groups, 1)

    def mean(self, per_token: Float[Tensor, "B T ..."]) -> Tensor:
        """The mean over the tokens that are no padding."""
        real = self.real.expand(per_token.shape[:2])
        return per_token[real].mean(0) if bool(real.any()) else per_token.sum((0, 1)) * 0

    def pair_mean(self, per_pair: Float[Tensor, "B heads T S"]) -> Float[Tensor, ""]:
        """The mean over the pairs that the mask allows, of tokens that are no padding."""
        allowed = (self.visible & self.real[..., None])[:, None].expand(per_pair.shape)
        return (per_pair * allowed).sum() / allowed.sum().clamp(min=1)


class Patch(nn.Module, ABC):
    """What an adapter does at one attention module. penalty, figures: of its last forward pass with a gradient."""

    penalty: Tensor | None = None
    figures: dict[str, Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.figures = {}

    def features(self, call: Call) -> Float[Tensor, "B T n"] | None:
        """What to remember of each token, beside its key; computed from `hidden` and `query` of the present tokens."""
        return None

    @abstractmethod
    def attend(self, call: Call) -> Float[Tensor, "B T H d"]:
        """The heads, before the output projection."""

    def constrain(self) -> None:  # most have no constraint
        """Project the parameters back into where they may be; called after every optimiser step."""


class Host(nn.Module):
    """Stands in for an attention module of the base. It holds it, and changes only the name of its attention function."""

    base: Any

    def __init__(self, base: nn.Module, patch: Patch) -> None:
        super().__init__()
        self.base, self._lent = base, (patch,)  # in a tuple: its parameters are not the base's
        self.bypass = False
        self._seen: Call | None = None
        self.looking = False
        config: Any = base.config
        self._config = config

    @property
    def _plain(self) -> Callable[..., tuple[Tensor, Tensor | None]]:
        """The base's attention function. BaseError for a backend that was chosen since and cannot run a patch."""
        check_backend(self._config)
        found: Callable[..., tuple[Tensor, Tensor | None]] = ALL_ATTENTION_FUNCTIONS.get_interface(
            self._config._attn_implementation, _eager(self.base)
        )
        return found

    def attach(self) -> None:
        """From now on the module hands its calls over. Its configuration is the model's; it gets a copy of its own."""
        self.base.config = copy.copy(self._config)
        self.base.config._attn_implementation_internal = HANDED_OVER

    def detach(self) -> None:
        self.base.config = self._config

    def take(self) -> Call | None:
        """The call of the last forward pass while `looking`; it is not kept any longer."""
        call, self._seen = self._seen, None
        return call

    def forward(self, hidden_states: Tensor, past_key_values: Cache | None = None, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        if self.bypass:
            call = Call(hidden_states, None, self._plain, None, None)
            return self.base(hidden_states, past_key_values=past_key_values, svf_rl_call=call, **kwargs)  # type: ignore[no-any-return]
        call = Call(hidden_states, kwargs.get("position_embeddings"), self._plain, self._lent[0], past_key_values, self.looking)
        stand_in = None if past_key_values is None else call
        out, weights = self.base(hidden_states, past_key_values=stand_in, svf_rl_call=call, **kwargs)
        self._seen = call if self.looking else None
        return out if call.after is None else out + call.after.to(out.dtype), weights


def _hand_over(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, svf_rl_call: Call, **options: Any
) -> tuple[Tensor, Tensor | None]:
    if svf_rl_call.patch is None:
        return svf_rl_call.plain(module, query, key, value, mask, **options)
    return svf_rl_call.run(module, query, key, value, mask, **options), None


ALL_ATTENTION_FUNCTIONS.register(HANDED_OVER, _hand_over)


def check_backend(config: Any) -> None:
    """BaseError, by name, for an attention backend that cannot run a patch."""
    backend = config._attn_implementation
    if backend not in BACKENDS:
        raise BaseError(f"attention adapters need the attention backend {' or '.join(BACKENDS)}, this base runs on {backend!r}")


def find_attention(model: nn.Module) -> dict[str, Site]:
    """The attention modules of a decoder by path, in order. BaseError for a backend or an architecture that cannot be adapted."""
    config: Any = model.config
    check_backend(config)
    if any(isinstance(module, Host) for module in model.modules()):
        raise BaseError("the attention of this base is already adapted; uninstall that adapter first")
    names = [n for n, m in model.named_modules() if hasattr(m, "layer_idx") and _projection(m) is not None]
    if not names:
        raise BaseError(f"cannot adapt the attention of {type(model).__name__}: expected modules with o_proj or c_proj, found none")
    return {name: _site(model, name) for name in names}


def _site(model: nn.Module, name: str) -> Site:
    module: Any = model.get_submodule(name)
    rotate = getattr(sys.modules[type(module).__module__], "apply_rotary_pos_emb", None)
    odd = [what for what, wrong in {
        "an attention function that is not looked up": _eager(module) is None,
        "attention sinks": hasattr(module, "sinks"),
        "capped scores": bool(getattr(module.config, "attn_logit_softcapping", None)),
        "rotations of another kind": rotate is not None and not _turns_halves(rotate, module.head_dim),
        "scores in another precision": bool(getattr(module, "reorder_and_upcast_attn", False)),
    }.items() if wrong]  # fmt: skip
    if odd:
        raise BaseError(f"cannot adapt the attention of {type(module).__name__}: it has {odd[0]}; give another base")
    out: Any = _projection(module)
    weight = out.weight.detach().T if isinstance(out, Conv1D) else out.weight.detach()
    share = float((getattr(module.config, "rope_parameters", None) or {}).get("partial_rotary_factor", 1.0))
    return Site(
        width=len(weight),
        heads=weight.shape[1] // module.head_dim,
        groups=getattr(module, "num_key_value_groups", 1),
        head_dim=module.head_dim,
        rotary=0 if rotate is None else int(module.head_dim * share),
        layer=module.layer_idx,
        out=weight,
    )


def _projection(module: Any) -> nn.Module | None:
    found = getattr(module, "o_proj", None) or getattr(module, "c_proj", None)
    return found if isinstance(found, nn.Linear | Conv1D) and hasattr(module, "head_dim") else None


def _eager(module: nn.Module) -> Any:
    return getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)


def rotate(x: Float[Tensor, "B heads T d"], turn: tuple[Tensor, Tensor] | None) -> Float[Tensor, "B heads T d"]:
    """x turned by its tokens' positions, half against half; dimensions beyond the rotary ones, and x without RoPE, stay."""
    if turn is None:
        return x
    cos, sin = (part[:, None].to(x.dtype) for part in turn)
    moving, still = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    first, second = moving.chunk(2, -1)
    return torch.cat([moving * cos + torch.cat([-second, first], -1) * sin, still], -1)


def _turns_halves(theirs: Callable[..., tuple[Tensor, Tensor]], width: int) -> bool:
    x = torch.linspace(-1, 1, 2 * width).view(1, 1, 2, width)
    angle = torch.linspace(0, 3, 2 * (width // 2)).view(1, 2, -1).repeat(1, 1, 2)
    return torch.allclose(theirs(x, x, angle.cos(), angle.sin())[0], rotate(x, (angle.cos(), angle.sin())))
