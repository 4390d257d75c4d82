"""The library's own forward for sampling: any causal language model of transformers, at the pace of its modules.

Keys and values lie in one block for each layer, [rows, heads, time, width], that stands in for the library's cache: every row
writes at its own position, and a mask says what it sees.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from svf_rl.base.load import Base
from svf_rl.errors import BaseError


@dataclass
class Target:
    """What the next forward writes: `slots` are rows of the block; a prefill copies row `copies[i]` of its batch to slots[i]."""

    rows: int
    capacity: int
    slots: Tensor
    copies: Tensor
    positions: Tensor
    width: int = 0
    prefill: bool = True


class Slots(CacheLayerMixin):
    """Keys and values of one layer, [rows, heads, time, width]; `target` says which rows and positions the next call fills."""

    is_sliding = False

    def __init__(self, target: "Target") -> None:
        super().__init__()
        self.target = target

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        shape = (self.target.rows, key_states.shape[1], self.target.capacity)
        self.keys = key_states.new_zeros(*shape, key_states.shape[-1])
        self.values = value_states.new_zeros(*shape, value_states.shape[-1])
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        t = self.target
        if t.prefill:  # new rows see only themselves; copies of one prompt share its prefill
            length = key_states.shape[2]
            self.keys[t.slots, :, :length] = key_states[t.copies]
            self.values[t.slots, :, :length] = value_states[t.copies]
            return key_states, value_states
        self.keys[t.slots, :, t.positions] = key_states[:, :, 0]
        self.values[t.slots, :, t.positions] = value_states[:, :, 0]
        return self.keys[: len(t.slots), :, : t.width], self.values[: len(t.slots), :, : t.width]

    def keep(self, rows: Tensor) -> None:
        self.keys, self.values = self.keys[rows], self.values[rows]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.target.width, 0

    def get_seq_length(self) -> int:
        return self.target.width

    def get_max_length(self) -> int:
        return self.target.capacity


class Modules:
    """Implements `svf_rl.rollout.engine.Forward` for any base."""

    def __init__(self, base: Base, rows: int, capacity: int) -> None:
        none = torch.zeros(0, dtype=torch.long, device=base.device)
        self.base, self.target = base, Target(rows, capacity, none, none, none)
        self.slots = [Slots(self.target) for _ in range(base.model.config.get_text_config().num_hidden_layers)]
        self.cache = Cache(layers=self.slots)

    def prefill(self, ids: Tensor, lengths: Tensor, slots: Tensor, copies: Tensor) -> Tensor:
        t, time = self.target, torch.arange(ids.shape[1], device=ids.device)
        t.slots, t.copies, t.prefill, t.width = slots, copies, True, len(time)
        visible = (time[None, :, None] >= time[None, None, :]).expand(len(ids), -1, -1)
        hidden = self._forward(ids, time.expand(len(ids), -1), visible)
        return hidden[torch.arange(len(ids), device=ids.device), lengths - 1]

    def decode(self, ids: Tensor, positions: Tensor) -> Tensor:
        t, time = self.target, torch.arange(int(positions.max()) + 1, device=ids.device)
        t.slots, t.positions, t.prefill, t.width = torch.arange(len(ids), device=ids.device), positions, False, len(time)
        visible = (time[None, :] <= positions[:, None])[:, None]
        return self._forward(ids[:, None], positions[:, None], visible)[:, 0]

    def keep(self, rows: Int[Tensor, " kept"]) -> None:
        for layer in self.slots:
            layer.keep(rows)

    def _forward(self, ids: Tensor, positions: Int[Tensor, "rows q"], visible: Bool[Tensor, "rows q k"]) -> Tensor:
        keys = torch.arange(visible.shape[-1], device=ids.device)
        masks = attention_masks(self.base, positions, keys, visible)
        return self.base.hidden(ids, position_ids=positions, attention_mask=masks, past_key_values=self.cache, use_cache=True)


def attention_masks(
    base: Base, positions: Int[Tensor, "rows q"], keys: Int[Tensor, "*any k"], visible: Bool[Tensor, "rows q k"]
) -> Tensor | dict[str, Tensor]:
    """What this base wants as a ready-made mask: one for all layers, or one per kind of layer where some see only a window.

    positions, keys: the positions of the tokens that see, and of those that are seen.
    """
    config = base.model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or ())
    if kinds - {"full_attention", "sliding_attention"}:
        raise BaseError(f"cannot sample from a base with layers of {', '.join(sorted(kinds))}; give one with attention layers only")
    full = _mask(base, visible)
    if window is None or (kinds and "sliding_attention" not in kinds):
        return full
    near = _mask(base, visible & (positions[:, :, None] - keys.unsqueeze(-2) < window))
    return {"full_attention": full, "sliding_attention": near} if kinds else near


def _mask(base: Base, visible: Bool[Tensor, "rows q k"]) -> Tensor:
    """True where a query sees a key; as a term that is added to the scores where the library's plain attention wants that."""
    if base.model.config._attn_implementation == "sdpa":
        return visible[:, None]
    dtype = base.model.dtype
    return torch.zeros_like(visible, dtype=dtype).masked_fill(~visible, torch.finfo(dtype).min)[:, None]
