"""The forward pass of the common decoders, written out for sampling: prompts padded on the right, then one token of every row.

It computes what the library's modules compute (see layer.py for how) without their overhead. Of a prompt, only the last token goes
through the last layer's feed-forward part.

Weights are read anew for every batch, so they are those of the adapter at that moment. An engine is used only after its states on a
probe were found to be those of the model itself. What it does not know, or what somebody has hooked into or replaced, runs on the
library's own forward (modules.py), and the reason is logged.

Source: pytorch-labs/gpt-fast and karpathy/nanochat nanochat/engine.py, for the idea of a small forward of one's own.
"""

import logging
from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from svf_rl.base.load import Base
from svf_rl.rollout.layer import Layer, New, children, is_plain, norm
from svf_rl.rollout.modules import Modules

FAMILIES = {"llama", "mistral", "qwen2", "qwen3", "gemma", "phi3", "gpt2"}
ROTATIONS = {"default", "linear", "llama3", "yarn"}  # a position's angle does not depend on what else is in the batch
LINEARS = {"c_attn", "c_fc", "c_proj", "down_proj", "gate_proj", "gate_up_proj", "k_proj", "lm_head", "o_proj"}
LINEARS |= {"q_proj", "qkv_proj", "up_proj", "v_proj"}
STEP = 32  # empty slots that a block gets when it is moved
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 0.02, torch.bfloat16: 0.1}
_log = logging.getLogger(__name__)
_told: set[str] = set()


@runtime_checkable
class Forward(Protocol):
    """What the sampler needs of a forward pass: final hidden states of the last tokens, and a memory of rows."""

    def prefill(
        self, ids: Int[Tensor, "n time"], lengths: Int[Tensor, " n"], slots: Int[Tensor, " new"], copies: Int[Tensor, " new"]
    ) -> Float[Tensor, "n width"]:
        """Run new prompts, padded on the right; row slots[i] remembers prompt copies[i]."""
        ...

    def decode(self, ids: Int[Tensor, " rows"], positions: Int[Tensor, " rows"]) -> Float[Tensor, "rows width"]:
        """Run one more token of every row."""
        ...

    def keep(self, rows: Int[Tensor, " kept"]) -> None:
        """Forget all other rows; the kept ones are numbered anew."""
        ...


class Unknown(Exception):
    """Why a base cannot run on the engine."""


@torch.no_grad()
def make_forward(base: Base, rows: int, capacity: int) -> Forward:
    """The engine where it is right for the base as it now is; else the library's forward, and the reason is logged once.

    Runs the model on two rows to find out.
    """
    try:
        return Engine(base, capacity).checked().start(rows)
    except Unknown as reason:
        if str(reason) not in _told:
            _told.add(str(reason))
            _log.warning("sampling from %r runs on the model's own forward, which is slower: %s", base.name, reason)
        return Modules(base, rows, capacity)


class Engine:
    """Implements `Forward` for a base of FAMILIES, as it is adapted now. capacity: the longest sequence there will be.

    end: the slot for the next token of every row.  alive: how many slots before it some row may see.
    hidden: minus infinity in the slots that a row must not see, else zero; [rows, kv, slots], as the layers' memories.
    """

    def __init__(self, base: Base, capacity: int) -> None:
        check_known(base)
        self.base, model, config = base, base.model.base_model, base.model.config
        (self.embed,), self.places = children(model, "embed_tokens wte"), getattr(model, "wpe", None)
        self.turns = turns(model, max(capacity, 8)) if hasattr(model, "rotary_emb") else None
        rotated = 0 if self.turns is None else 2 * self.turns.shape[-1]
        (layers,) = children(model, "layers h")
        self.layers = [Layer(layer, config, window(config, i), rotated) for i, layer in enumerate(layers)]
        self.norm = norm(children(model, "norm ln_f")[0])

    def start(self, rows: int) -> "Engine":
        how = {"dtype": self.base.model.dtype, "device": self.base.device}
        for layer in self.layers:
            layer.start(rows, **how)
        self.end = self.alive = 0
        self.hidden = torch.zeros(rows, self.layers[0].kv, 0, **how)
        return self

    def prefill(self, ids: Tensor, lengths: Tensor, slots: Tensor, copies: Tensor) -> Tensor:
        columns = torch.arange(ids.shape[1], device=ids.device)
        self._make_room(len(columns))
        self.alive = max(self.alive, len(columns))
        taken = lengths[copies, None]
        self.hidden[slots] = before(self.end - taken, self.hidden)
        new = New(slots, copies, (columns + taken) % len(columns), self.end)  # padding goes to the front
        return self._forward(ids, columns.expand_as(ids), lengths - 1, lambda layer, *qkv: layer.attend_prompts(*qkv, new))

    def decode(self, ids: Tensor, positions: Tensor) -> Tensor:
        self.alive = int(positions.max())
        self._make_room(0)
        self.end, self.alive = self.end + 1, self.alive + 1
        seen = self.hidden[..., self.end - self.alive : self.end]
        zeros = torch.zeros_like(ids)
        return self._forward(ids[:, None], positions[:, None], zeros, lambda layer, *qkv: layer.attend_block(*qkv, seen, self.end))

    def keep(self, rows: Tensor) -> None:
        self.hidden = self.hidden[rows]
        for layer in self.layers:
            layer.keep(rows)

    def _make_room(self, time: int) -> None:
        """Move everything unless there are so many slots before the end, and one after it."""
        if time <= self.end < self.hidden.shape[-1]:
            return
        seen, self.end = slice(self.end - self.alive, self.end), max(self.alive, time)
        front = self.end - self.alive
        for layer in self.layers:
            layer.move(seen, front, STEP)
        self.hidden = F.pad(F.pad(self.hidden[..., seen], (front, 0), value=-torch.inf), (0, STEP))

    def _forward(self, ids: Tensor, positions: Tensor, last: Tensor, attend: Callable[..., Tensor]) -> Tensor:
        rows, x = torch.arange(len(ids), device=ids.device), self.embed(ids)
        if self.places is not None:
            x = x + self.places(positions)
        angles = None if self.turns is None else self.turns[positions][:, :, None]
        for layer in self.layers:
            y = attend(layer, *layer.project(x, angles))
            if layer is self.layers[-1]:
                x, y = x[rows, last, None], y[rows, last, None]
            x = x + layer.out(y)
            x += layer.mlp(x)
        return self.norm(x)[:, 0]

    def checked(self) -> "Engine":
        """Itself, if its states on a probe are the model's own. Unknown if not."""
        device = self.base.device
        ids = (torch.arange(12, device=device).view(2, 6) * 7 + 1) % self.base.model.config.vocab_size
        lengths, rows = torch.tensor([5, 3], device=device), torch.arange(2, device=device)
        self.start(2)
        found = torch.stack([self.prefill(ids[:, :5], lengths, rows, rows), self.decode(ids[rows, lengths], lengths)])
        states = self.base.hidden(ids, use_cache=False)
        truth = torch.stack([states[rows, lengths - 1], states[rows, lengths]])
        error = float((found - truth).norm() / truth.norm())
        if not error < TOLERANCE[truth.dtype]:
            raise Unknown(f"the engine's hidden states differ from the model's by {error:.1e}")
        return self


def check_known(base: Base) -> None:
    """Unknown for another family, another attention, or a model that somebody has hooked into."""
    config = base.model.config
    if config.model_type not in FAMILIES or not base.split_head:
        raise Unknown(f"there is no engine for {config.model_type!r}")
    rotation = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rotation not in ROTATIONS or config._attn_implementation not in ("sdpa", "eager"):
        raise Unknown(f"there is no engine for rotation {rotation!r} with attention {config._attn_implementation!r}")
    foreign = [name for name, part in skeleton(base.model) if not is_plain(part)]
    if foreign:
        raise Unknown(f"{foreign[0]} is not the library's own")


def skeleton(module: nn.Module, name: str = "the model") -> Iterator[tuple[str, nn.Module]]:
    """It and all its parts but the linear layers: what the engine stands in for."""
    yield name, module
    for name, part in module.named_children():
        if name not in LINEARS:
            yield from skeleton(part, name)


def window(config: Any, layer: int) -> int | None:
    """How many of the last positions a layer sees; None for all."""
    kinds = getattr(config, "layer_types", None)
    if kinds and kinds[layer] == "full_attention":
        return None
    size: int | None = getattr(config, "sliding_window", None)
    return size


def turns(model: Any, capacity: int) -> Complex[Tensor, "time half"]:
    """The rotation of every position as complex numbers, by the model's own module."""
    positions = torch.arange(capacity, device=model.device)[None]
    like = torch.zeros(1, dtype=torch.promote_types(model.dtype, torch.float32), device=model.device)
    cos, sin = (part[0, :, : part.shape[-1] // 2] for part in model.rotary_emb(like, positions))
    return torch.complex(cos.contiguous(), sin.contiguous())


def before(first: Int[Tensor, "new 1"], like: Float[Tensor, "rows kv slots"]) -> Float[Tensor, "new kv slots"]:
    """Minus infinity in the slots before a row's first, else zero."""
    early = torch.arange(like.shape[-1], device=like.device) < first
    return (
        torch.zeros(early.shape, dtype=like.dtype, device=like.device)
        .masked_fill_(early, -torch.inf)[:, None]
        .expand(-1, like.shape[1], -1)
    )
