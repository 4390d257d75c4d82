"""Prompt ids in, completions out: batched sampling with a key/value cache, on the base's own forward.

The batch has a fixed number of rows. A row that finishes is retired at once; when enough rows are free (an eighth), the next
prompts are prefilled together, equal prompts once, and take their place; when no prompt is left, the batch shrinks. So no step is
spent on finished rows. Ids and float32 log-probabilities are recorded as they are drawn and nothing is tokenised again.

Every row draws from its own stream of uniform numbers, made from its own seed: token = the first whose cumulative probability
exceeds the next number. A completion therefore does not depend on which rows it shared a batch with.

Source: the refill of huggingface/transformers generation/continuous_batching; the shared prefill of karpathy/nanochat
nanochat/engine.py.
Differs from the source: keys and values lie in one block [rows, heads, time, width] that every row writes at its own position;
there are no pages and no scheduler.
"""

import hashlib
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from svf_rl.base.load import Base
from svf_rl.errors import BaseError, UserError
from svf_rl.types import Completion


@dataclass(frozen=True)
class Sampling:
    """How to write: at most `max_tokens`, at a temperature (0 is greedy), with up to `rows` completions at a time."""

    max_tokens: int = 64
    temperature: float = 1.0
    rows: int = 128

    def __post_init__(self) -> None:
        if self.max_tokens < 1 or self.rows < 1 or not 0 <= self.temperature < math.inf:
            raise UserError(f"max_tokens and rows must be at least 1, temperature at least 0; found {self}")


@torch.no_grad()
def sample(
    base: Base,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    seeds: Sequence[int],
    kinds: Sequence[int] | None = None,
    choose: Callable[[Int[Tensor, " rows"]], None] | None = None,
    done: Callable[[int], None] | None = None,
) -> list[Completion]:
    """One completion per prompt, in order; seeds[i] decides the draws of completion i.

    kinds[i] says what completion i is written with, e.g. the number of an expert: before every forward pass, `choose` is called
    with the kinds of its rows (of some earlier row where one is idle). `done` is told how many completions have ended since its
    last call. UserError for an empty prompt, or one that leaves no room in the base's context.
    """
    check_prompts(base, prompts)
    if not prompts:
        return []
    batch = _Batch(base, prompts, sampling, seeds, torch.tensor(kinds or [0] * len(prompts)), choose or _nothing)
    found: dict[int, Completion] = {}
    for ended in batch.run():
        found.update(ended)
        if ended and done:
            done(len(ended))
    return [found[i] for i in range(len(prompts))]


def _nothing(kinds: Tensor) -> None:
    """All rows are of one kind."""


def draw_seed(*parts: int) -> int:
    """A 62-bit seed from whatever tells one completion from the others, e.g. (seed of the run, step, episode)."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "big") >> 2


def check_prompts(base: Base, prompts: Collection[Sequence[int]]) -> None:
    """UserError for a prompt of no tokens, or one as long as the context."""
    for prompt in prompts:
        if not prompt:
            raise UserError("expected a prompt of at least one token, found an empty one; give some text")
        if len(prompt) >= base.context:
            raise UserError(f"a prompt of {len(prompt)} tokens leaves no room in the base's context of {base.context}; shorten it")


class _Slots(CacheLayerMixin):
    """Keys and values of one layer, [rows, heads, time, width]; `target` says which rows and positions the next call fills."""

    is_sliding = False

    def __init__(self, target: "_Target") -> None:
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


@dataclass
class _Target:
    """What the next forward writes: `slots` are rows of the block; a prefill copies row `copies[i]` of its batch to slots[i]."""

    rows: int
    capacity: int
    slots: Tensor
    copies: Tensor
    positions: Tensor
    width: int = 0
    prefill: bool = True


class _Batch:
    """The rows being written. Row r holds completion index[r], of prompt length start[r], with count[r] tokens so far."""

    def __init__(
        self,
        base: Base,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        seeds: Sequence[int],
        kinds: Int[Tensor, " n"],
        choose: Callable[[Tensor], None],
    ) -> None:
        self.base, self.prompts, self.sampling, self.seeds = base, prompts, sampling, seeds
        self.kinds, self.choose = kinds, choose
        self.queue = list(range(len(prompts)))[::-1]
        rows, device = min(sampling.rows, len(prompts)), base.device
        capacity = min(base.context, max(map(len, prompts)) + sampling.max_tokens)
        empty = torch.zeros(0, dtype=torch.long, device=device)
        self.target = _Target(rows, capacity, empty, empty, empty)
        layers = base.model.config.get_text_config().num_hidden_layers
        self.slots = [_Slots(self.target) for _ in range(layers)]
        self.cache = Cache(layers=self.slots)
        self.stops = torch.tensor(sorted(base.codec.stop_ids), device=device)
        self.index = torch.full((rows,), -1)
        self.start, self.count, self.limit, self.kind = (torch.zeros(rows, dtype=torch.long) for _ in range(4))
        self.ids = torch.zeros(rows, sampling.max_tokens, dtype=torch.long, device=device)
        self.logprobs = torch.zeros(rows, sampling.max_tokens, device=device)
        self.uniforms = torch.zeros(rows, sampling.max_tokens, device=device)

    def run(self) -> Iterator[dict[int, Completion]]:
        while self.queue or len(self.index):
            free = (self.index < 0).nonzero().flatten()
            if len(free) and self.queue and len(free) >= min(len(self.queue), max(1, len(self.index) // 8)):
                rows = free[: len(self.queue)]
                self._record(self._admit(rows), rows)
            elif len(free) and not self.queue:
                self._shrink()
            else:
                rows = (self.index >= 0).nonzero().flatten()
                self._record(self._decode(), rows)
            yield dict(self._retire())

    def _admit(self, rows: Tensor) -> Float[Tensor, "new vocabulary"]:
        """Prefill the next prompts into free rows; returns the scores of their first tokens."""
        for row in rows.tolist():
            self._assign(row, self.queue.pop())
        chosen = [(int(self.kinds[i]), *self.prompts[i]) for i in self.index[rows].tolist()]
        unique = list(dict.fromkeys(chosen))
        lengths = torch.tensor([len(prompt) - 1 for prompt in unique])
        ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(p[1:]) for p in unique], batch_first=True).to(self.base.device)
        t, time = self.target, torch.arange(ids.shape[1], device=ids.device)
        t.slots, t.copies = rows.to(ids.device), torch.tensor([unique.index(p) for p in chosen], device=ids.device)
        t.prefill, t.width = True, len(time)
        visible = (time[None, :, None] >= time[None, None, :]).expand(len(unique), -1, -1)
        self.choose(torch.tensor([kind for kind, *_ in unique]))
        hidden = self._forward(ids, time.expand(len(unique), -1), visible)
        last = hidden[torch.arange(len(unique)), lengths - 1]
        return self.base.logits(last)[t.copies]

    def _assign(self, row: int, index: int) -> None:
        length = len(self.prompts[index])
        self.index[row], self.start[row], self.count[row], self.kind[row] = index, length, 0, self.kinds[index]
        self.limit[row] = min(self.sampling.max_tokens, self.base.context - length)
        stream = torch.Generator().manual_seed(self.seeds[index])
        self.uniforms[row] = torch.rand(self.sampling.max_tokens, generator=stream).to(self.uniforms.device)

    def _decode(self) -> Float[Tensor, "active vocabulary"]:
        """One more token for every row; idle rows (waiting for a refill) compute along and are ignored."""
        t, device = self.target, self.base.device
        position = (self.start + self.count - 1).clamp(min=0).to(device)
        t.slots, t.positions = torch.arange(len(self.index), device=device), position
        t.prefill, t.width = False, int(position.max()) + 1
        last = self.ids[t.slots, (self.count - 1).clamp(min=0).to(device)]
        time = torch.arange(t.width, device=device)
        visible = (time[None, :] <= position[:, None])[:, None]
        self.choose(self.kind)
        hidden = self._forward(last[:, None], position[:, None], visible)[:, 0]
        return self.base.logits(hidden[self.index.to(device) >= 0])

    def _forward(self, ids: Tensor, positions: Int[Tensor, "rows q"], visible: Bool[Tensor, "rows q k"]) -> Tensor:
        keys = torch.arange(visible.shape[-1], device=ids.device)
        masks = attention_masks(self.base, positions, keys, visible)
        return self.base.hidden(ids, position_ids=positions, attention_mask=masks, past_key_values=self.cache, use_cache=True)

    def _record(self, logits: Tensor, rows: Tensor) -> None:
        count, device = self.count[rows], logits.device
        token, logprob = draw(logits, self.sampling.temperature, self.uniforms[rows.to(device), count.to(device)])
        self.ids[rows.to(device), count.to(device)] = token
        self.logprobs[rows.to(device), count.to(device)] = logprob
        self.count[rows] += 1

    def _retire(self) -> Iterator[tuple[int, Completion]]:
        busy = self.index >= 0
        last = self.ids[torch.arange(len(self.index)), (self.count - 1).clamp(min=0)]
        stopped = torch.isin(last, self.stops).cpu() & busy
        for row in (stopped | (busy & (self.count >= self.limit))).nonzero().flatten().tolist():
            n = int(self.count[row])
            stop = "stop" if stopped[row] else "length"
            yield int(self.index[row]), Completion(self.ids[row, :n].tolist(), self.logprobs[row, :n].tolist(), stop)
            self.index[row] = -1

    def _shrink(self) -> None:
        keep = (self.index >= 0).nonzero().flatten()
        rows = (self.index, self.start, self.count, self.limit, self.kind)
        self.index, self.start, self.count, self.limit, self.kind = (x[keep] for x in rows)
        on_device = keep.to(self.base.device)
        self.ids, self.logprobs, self.uniforms = (x[on_device] for x in (self.ids, self.logprobs, self.uniforms))
        for layer in self.slots:
            layer.keep(on_device)


def draw(
    logits: Float[Tensor, "rows vocabulary"], temperature: float, uniform: Float[Tensor, " rows"]
) -> tuple[Int[Tensor, " rows"], Float[Tensor, " rows"]]:
    """A token per row and its log-probability under softmax(logits / temperature); greedy at temperature 0."""
    logprobs = torch.log_softmax(logits / (temperature or 1.0), dim=-1)
    if temperature == 0:
        token = logits.argmax(-1)
    else:
        cumulative = logprobs.exp().cumsum(-1)
        token = torch.searchsorted(cumulative, (uniform * cumulative[:, -1])[:, None], right=True)[:, 0]
        token = token.clamp(max=logits.shape[-1] - 1)
    return token, logprobs.gather(1, token[:, None])[:, 0]


def attention_masks(
    base: Base, positions: Int[Tensor, "rows q"], keys: Int[Tensor, " k"], visible: Bool[Tensor, "rows q k"]
) -> Tensor | dict[str, Tensor]:
    """What this base wants as a ready-made mask: one for all layers, or one per kind of layer where some see only a window."""
    config = base.model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or ())
    if kinds - {"full_attention", "sliding_attention"}:
        raise BaseError(f"cannot sample from a base with layers of {', '.join(sorted(kinds))}; give one with attention layers only")
    full = _mask(base, visible)
    if window is None or (kinds and "sliding_attention" not in kinds):
        return full
    near = _mask(base, visible & (positions[:, :, None] - keys < window))
    return {"full_attention": full, "sliding_attention": near} if kinds else near


def _mask(base: Base, visible: Bool[Tensor, "rows q k"]) -> Tensor:
    """True where a query sees a key; as a term that is added to the scores where the library's plain attention wants that."""
    if base.model.config._attn_implementation == "sdpa":
        return visible[:, None]
    dtype = base.model.dtype
    return torch.zeros_like(visible, dtype=dtype).masked_fill(~visible, torch.finfo(dtype).min)[:, None]
